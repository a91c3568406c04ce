# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning of a pre-trained encoder: the specific teacher, or a student.

    g2sd train --config=finetune:model=b16 --workdir=runs/ft_b \\
        --config.init_from=runs/mae_b
    g2sd train --config=finetune:task=segmentation,model=b16 --workdir=runs/seg_b \\
        --config.init_from=runs/mae_b --config.data.path=ADEChallengeData2016

Published top-1 on ImageNet-1k: MAE ViT-B 83.6 %, L 85.9 %, H 86.9 %; after DMAE
(`finetune:after=dmae`) ViT-B 84.0 %.

Published mIoU on ADE20K, UperNet: MAE ViT-B (the teacher) 48.3 %, ViT-S 41.1 %, ViT-Ti
36.9 %; started from generic distillation (G2SD w/o S.D), ViT-S 46.2 %, ViT-Ti 41.4 %.
"""

from configs import common, segmentation

# Epochs, warm-up, base learning rate, layer decay, drop path: MAE's, DMAE's for its
# ViT-B, and for the small ones those of stage 2.
RECIPES = {
    "mae b16": (100.0, 5.0, 5e-4, 0.65, 0.1),
    "mae l16": (50.0, 5.0, 1e-3, 0.75, 0.2),
    "mae h14": (50.0, 5.0, 1e-3, 0.75, 0.3),
    "dmae b16": (100.0, 20.0, 5e-4, 0.75, 0.15),
}
SMALL = (200.0, 5.0, 1e-3, 0.75, 0.0)


def get_config(arguments=""):
    known = dict(model="b16", after="mae", task="classification", data="")
    args = common.arguments(arguments, **known)
    recipes = {"classification": classification, "segmentation": segmentation.recipe}
    if args.task not in recipes:
        raise ValueError(
            f"recipe argument task={args.task!r} is not known; known: "
            f"{', '.join(recipes)}"
        )
    config = recipes[args.task](args)
    config.stage = "finetune"
    return common.smoke(config, args)


def classification(args):
    if args.data:
        raise ValueError(
            f"recipe argument data={args.data!r} is one of task=segmentation; set "
            "config.data.source and config.data.path instead"
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
        "finetune",
        lr=rate * 1024 / 256,
        min_lr=1e-6,
        warmup_epochs=warmup,
        layer_decay=decay,
    )
    return config
