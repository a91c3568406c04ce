# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""DMAE: distilling a masked autoencoder's encoder while reconstructing.

    g2sd train --config=dmae_distill --workdir=runs/dmae_b \\
        --config.teacher.checkpoint=mae_visualize_vit_large.safetensors

    g2sd train --config=dmae_distill:mask=0.98 …     # three visible patches

Published (DMAE, arXiv 2208.12256), ViT-L -> ViT-B, 100 epochs, batch 4 x 8 x 128, then
fine-tuned: 84.0 % top-1 on ImageNet-1k at 75 % masking, 83.6 % at 95 %, 82.4 % at 98 %.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments=""):
    args = common.arguments(arguments, student="b16", teacher="l16", mask=0.75)
    config = common.base()
    config.stage = "dmae_distill"
    config.batch = 4096  # 4 x 8 x 128 in the original
    config.total_epochs = 100.0
    config.model = common.mae(args.student, "dec512d8b")
    config.mask_ratio = args.mask
    config.target = "raw"  # The script passes no norm_pix_loss; normalised, raw.
    config.teacher = ConfigDict()
    config.teacher.model = common.mae(args.teacher, "dec512d8b")
    config.teacher.checkpoint = ""  # Workdir or file, a decoder is not needed.
    config.teacher.target = "raw"  # Of the published "visualize" ViT-L.
    config.distill = ConfigDict()
    config.distill.student_blocks = (8,)  # Counted from 0: three quarters deep.
    config.distill.teacher_blocks = (17,)
    config.distill.projection = "fc"  # fc, mlp, mlp2, none (no unit length either)
    config.distill.norm = "l1"  # l1, l2
    config.distill.weight = 1.0
    config.init_from = ""  # Workdir or file of the same architecture; "" = fresh.
    config.signal = common.signal()
    config.augment = common.augment(crop_area=(0.2, 1.0), flip=0.5)
    config.optim = common.adamw(
        "pretrain", lr=1.5e-4 * 4096 / 256, b2=0.95, warmup_epochs=20.0
    )
    if args.smoke:
        config.mask_ratio = min(args.mask, 0.9)  # Of 36 patches there, 3 are seen.
        config.distill.student_blocks = (2,)  # Of 4 and 6 blocks there.
        config.distill.teacher_blocks = (4,)
    return common.smoke(config, args)
