# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning of a pre-trained encoder: the specific teacher, or a student.

    g2sd train --config=finetune:model=b16 --workdir=runs/ft_b \\
        --config.init_from=runs/mae_b
    g2sd train --config=finetune:task=segmentation,model=b16 --workdir=runs/seg_b \\
        --config.init_from=runs/mae_b --config.data.path=ADEChallengeData2016
    g2sd train --config=finetune:task=detection,model=b16 --workdir=runs/det_b \\
        --config.init_from=runs/mae_b --config.data.path=coco

Published top-1 on ImageNet-1k: MAE ViT-B 83.6 %, L 85.9 %, H 86.9 %; after DMAE
(`finetune:after=dmae`) ViT-B 84.0 %.

A ViT-Ti without a teacher (`finetune:after=mae_lite,model=ti16_12h`): MAE-Lite (arXiv
2205.14443) publishes 78.1 % after 400 epochs of pre-training with MAE and 300 of its
improved recipe, 75.8 % from scratch.

An encoder that somebody else trained: `finetune:model=file`, whose architecture, mean
and std are those of `config.init_from`.

Published mIoU on ADE20K, UperNet: MAE ViT-B (the teacher) 48.3 %, ViT-S 41.1 %, ViT-Ti
36.9 %; started from generic distillation (G2SD w/o S.D), ViT-S 46.2 %, ViT-Ti 41.4 %.

Published box and mask AP on COCO, ViTDet Mask R-CNN: MAE ViT-B (the teacher) 51.6 and
45.9 %, ViT-S 45.3 and 40.8 %, ViT-Ti 37.9 and 34.9 %; started from generic distillation
(G2SD w/o S.D), ViT-S 49.9 and 44.5 %, ViT-Ti 44.0 and 39.6 %.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common, detection, segmentation

# Epochs, warm-up, base learning rate, layer decay, drop path: MAE's, DMAE's for its
# ViT-B, and for the small ones those of stage 2.
RECIPES = {
    "mae b16": (100.0, 5.0, 5e-4, 0.65, 0.1),
    "mae l16": (50.0, 5.0, 1e-3, 0.75, 0.2),
    "mae h14": (50.0, 5.0, 1e-3, 0.75, 0.3),
    "dmae b16": (100.0, 20.0, 5e-4, 0.75, 0.15),
    "mae_lite ti16": (300.0, 5.0, 1e-3, 0.85, 0.0),
    "mae_lite ti16_12h": (300.0, 5.0, 1e-3, 0.85, 0.0),
}
SMALL = (200.0, 5.0, 1e-3, 0.75, 0.0)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(
        arguments, model="b16", after="mae", task="classification", data=""
    )
    if args.task not in TASKS:
        raise ValueError(
            f"recipe argument task={args.task!r} is not known; known: "
            f"{', '.join(TASKS)}"
        )
    recipe, small = TASKS[args.task]
    config = recipe(args)
    config.stage = "finetune"
    return common.smoke(config, args, **small)


def classification(args: ConfigDict) -> ConfigDict:
    """Fine-tuning of a classifier: a teacher, or a student."""
    if args.data:
        raise ValueError(
            f"recipe argument data={args.data!r} is one of task=segmentation and of "
            "task=detection; set config.data.source and config.data.path instead"
        )
    row = f"{args.after} {args.model}"
    epochs, warmup, rate, decay, drop_path = RECIPES.get(row, SMALL)
    config = common.base()
    config.task = "classification"
    config.batch = 1024
    config.total_epochs = epochs
    config.init_from = ""  # Workdir or file of a pre-trained encoder.
    config.model = common.classifier(args.model, drop_path=drop_path)
    config.augment = common.supervised_augment()
    config.optim = common.adamw(
        "finetune", min_lr=1e-6, warmup_epochs=warmup, layer_decay=decay
    )
    common.scale_lr(config, rate)
    if args.after == "mae_lite":
        # Its improved recipe, and no colour jitter beside RandAugment (timm has none).
        config.augment.randaugment = "rand-m10-mstd0.5-inc1"
        config.augment.update(erase=0.0, mixup=0.2, cutmix=0.0, smoothing=0.0)
    return config


# Name: its recipe, and what its smoke run makes smaller.
TASKS = {
    "classification": (classification, dict(model=common.SMALL_STUDENT)),
    "segmentation": (segmentation.recipe, segmentation.SMALL),
    "detection": (detection.recipe, detection.SMALL),
}
