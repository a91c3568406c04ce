# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Masked autoencoder pre-training: the generic teacher, or a student on its own.

    g2sd train --config=pretrain:model=b16 --workdir=runs/mae_b

Published (MAE, arXiv 2111.06377): 800 epochs, 1600 for the released weights; batch 4096
on 64 devices; after fine-tuning ViT-B reaches 83.6 % top-1 on ImageNet-1k.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, model="b16", decoder="")
    config = common.base()
    config.stage = "pretrain"
    config.batch = 4096  # 64 devices x 64
    config.total_epochs = 800.0
    decoder = args.decoder or common.decoder(args.model)
    config.model = common.mae(args.model, decoder)
    config.mask_ratio = 0.75
    config.target = "normalised"  # normalised: each patch by its own statistics; raw.
    config.init_from = ""  # Workdir or file of the same architecture; "" = fresh.
    config.monitor = common.monitor()
    config.augment = common.augment(crop_area=(0.2, 1.0), flip=0.5)
    config.optim = common.adamw("pretrain", b2=0.95, warmup_epochs=40.0)
    common.scale_lr(config, 1.5e-4)
    return common.smoke(
        config,
        args,
        model=common.SMALL_STUDENT | common.SMALL_DECODER,
        monitor=common.SMALL_MONITOR,
    )
