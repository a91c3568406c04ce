# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probing of a pre-trained encoder.

    g2sd train --config=linprobe:model=b16 --workdir=runs/probe_b \\
        --config.encoder.checkpoint=runs/mae_b

Published (MAE): 67.8 / 76.0 / 77.2 % top-1 on ImageNet-1k for ViT-B / L / H.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, model="")
    config = common.base()
    config.stage = "linprobe"
    config.batch = 16384
    config.total_epochs = 50.0 if args.model in ("l16", "h14") else 90.0
    config.encoder = ConfigDict()
    config.encoder.checkpoint = ""  # Workdir or file with an encoder; random:SEED.
    size = common.teacher_size(args.model, "b16")
    config.model = common.classifier(size, pool="cls")
    config.augment = common.augment(crop_area=(0.08, 1.0), crop_tries=1, flip=0.5)
    config.optim = common.lars("linprobe", warmup_epochs=10.0)
    common.scale_lr(config, 0.1)
    return common.smoke(
        config,
        args,
        model=common.SMALL_STUDENT,
        encoder=dict(checkpoint=common.RANDOM),
        batch=64,  # Or a step would take no time at all.
    )
