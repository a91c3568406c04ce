# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic distillation, stage 1 of G2SD: the student learns the teacher's features.

    g2sd train --config=generic_distill:student=s16 --workdir=runs/gd_s \
        --config.teacher.checkpoint=runs/mae_b

Published (G2SD, arXiv 2302.14771): 300 epochs, batch 2 x 8 x 256; with both stages
ViT-S reaches 82.5 % and ViT-Ti 77.0 % top-1 on ImageNet-1k. A loss near 0.02 is
healthy; one stuck near 0.2 is what a teacher with a random decoder gives.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments=""):
    args = common.arguments(arguments, student="s16", teacher="b16")
    config = common.base()
    config.stage = "generic_distill"
    config.batch = 4096  # 2 x 8 x 256 in the original
    config.total_epochs = 300.0
    decoder = common.DECODERS.get(args.student, "dec512d8b")
    config.model = common.mae(args.student, decoder)
    config.mask_ratio = 0.75
    config.teacher = ConfigDict()
    config.teacher.model = common.mae(args.teacher, "dec512d8b")
    config.teacher.checkpoint = ""  # Workdir or file with a decoder; random:SEED.
    config.teacher.target = "normalised"  # What it was trained on: normalised, raw.
    config.distill = ConfigDict()
    config.distill.tokens = "all"  # all (with the class token), masked, visible
    config.distill.teacher_block = 4  # Of its decoder, counted from 1.
    config.distill.beta = 2.0  # Where smooth-L1 turns linear.
    config.distill.feature = 1.0  # Weights of the terms; 0 = not built.
    config.distill.encoder_feature = 0.0
    config.distill.relation = 0.0
    config.distill.relation_groups = 12
    config.init_from = ""  # Workdir or file of the same architecture; "" = fresh.
    config.signal = common.signal()
    config.augment = common.augment(crop_area=(0.2, 1.0), flip=0.5)
    config.optim = common.adamw(
        "pretrain",
        lr=1.5e-4 * 4096 / 256,
        min_lr=2.5e-6,
        b2=0.95,
        warmup_epochs=10.0,
    )
    return common.smoke(config, args)
