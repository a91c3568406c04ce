# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""DMAE: distilling a masked autoencoder's encoder while reconstructing.

    g2sd train --config=dmae_distill --workdir=runs/dmae_b \\
        --config.teacher.checkpoint=mae_visualize_vit_large.safetensors

    g2sd train --config=dmae_distill:mask=0.98 …     # three visible patches

Published (DMAE, arXiv 2208.12256), ViT-L -> ViT-B, 100 epochs, batch 4 x 8 x 128, then
fine-tuned: 84.0 % top-1 on ImageNet-1k at 75 % masking, 83.6 % at 95 %, 82.4 % at 98 %.

    g2sd train --config=dmae_distill:teacher=file …       # any encoder: DINOv2, CLIP, …

    g2sd train --config=dmae_distill:paper=mae_lite --workdir=runs/lite \\
        --config.teacher.checkpoint=mae_pretrain_vit_base.pth

The latter has MAE-Lite's settings (arXiv 2205.14443, as its authors' code has them):
ViT-B to a ViT-Ti of 12 heads, mean squares of the last block's attention maps with
weight 1, beside normalised pixels, 400 epochs, batch 4096, warm-up 40, crops of at
least 8 %. Theirs mixes the student's heads linearly before they are compared. Then
fine-tuned: 76.5 % top-1, without distillation 76.1 %.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common

# Paper: student, teacher.
DEFAULTS = {"dmae": ("b16", "l16"), "mae_lite": ("ti16_12h", "b16")}
# Of 4 and 6 blocks there.
SMALL_BLOCKS = dict(student_blocks=(2,), teacher_blocks=(4,))
SMALL_RELATIONS = dict(
    student_blocks=(),
    teacher_blocks=(),
    relation_groups=4,
    relation_student_blocks=(3,),
    relation_teacher_blocks=(5,),
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, student="", teacher="", mask=0.75, paper="dmae")
    if args.paper not in DEFAULTS:
        raise ValueError(
            f"recipe argument paper={args.paper!r} is not known; known: "
            f"{', '.join(DEFAULTS)}"
        )
    student, size = DEFAULTS[args.paper]
    student, size = args.student or student, args.teacher or size
    config = common.base()
    config.stage = "dmae_distill"
    config.batch = 4096  # 4 x 8 x 128 in the original
    config.total_epochs = 100.0
    config.model = common.mae(student, "" if student == "custom" else "dec512d8b")
    config.mask_ratio = args.mask
    config.target = "raw"  # The script passes no norm_pix_loss; normalised, raw.
    config.teacher = ConfigDict()
    config.teacher.model = common.mae(size, "dec512d8b")
    config.teacher.checkpoint = ""  # Workdir or file, a decoder is not needed.
    config.teacher.target = "raw"  # Of the published "visualize" ViT-L.
    config.teacher.mean = ()  # That its pictures are normalised by; (): the data's.
    config.teacher.std = ()
    config.distill = ConfigDict()
    config.distill.student_blocks = (8,)  # Counted from 0: three quarters deep.
    config.distill.teacher_blocks = (17,)
    config.distill.projection = "fc"  # fc, mlp, mlp2, none (no unit length either)
    config.distill.norm = "l1"  # l1, l2
    config.distill.weight = 1.0
    config.distill.view = "visible"  # What the teacher sees: visible (patches), full.
    config.distill.relation = 0.0  # Weight of the attention maps' term; 0 = not built.
    config.distill.relation_groups = 12
    config.distill.relation_pairs = common.RELATION_PAIRS  # qk is an attention map.
    config.distill.relation_student_blocks = ()  # From 0, in pairs; (): from the first.
    config.distill.relation_teacher_blocks = ()
    config.distill.relation_distance = "kl"  # kl, l2
    config.init_from = ""  # Workdir or file of the same architecture; "" = fresh.
    config.monitor = common.monitor()
    config.augment = common.augment(crop_area=(0.2, 1.0), flip=0.5)
    config.optim = common.adamw("pretrain", b2=0.95, warmup_epochs=20.0)
    common.scale_lr(config, 1.5e-4)
    small, blocks = common.SMALL_TEACHER | common.SMALL_DECODER, SMALL_BLOCKS
    if size == "file":  # No autoencoder's, or of one the encoder alone.
        config.teacher.model = common.encoder(size)
        del config.teacher.target
        small = common.SMALL_TEACHER
    if args.paper == "mae_lite":
        mae_lite(config)
        blocks = SMALL_RELATIONS
    return common.smoke(
        config,
        args,
        model=common.SMALL_STUDENT | common.SMALL_DECODER,
        mask_ratio=min(args.mask, 0.9),  # Of 36 patches there, 3 are seen.
        teacher=dict(model=small, checkpoint=common.RANDOM),
        distill=blocks,
        monitor=common.SMALL_MONITOR,
    )


def mae_lite(config: ConfigDict) -> None:
    """Sets what MAE-Lite publishes for its distillation during pre-training."""
    config.total_epochs = 400.0
    config.target = "normalised"
    if "target" in config.teacher:
        config.teacher.target = "normalised"
    config.distill.student_blocks = config.distill.teacher_blocks = ()
    config.distill.relation = 1.0
    config.distill.relation_pairs = ("qk",)
    config.distill.relation_student_blocks = (11,)
    config.distill.relation_teacher_blocks = (11,)
    config.distill.relation_distance = "l2"
    config.augment.crop_area = (0.08, 1.0)
    config.optim.warmup_epochs = 40.0
