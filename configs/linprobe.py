# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probing of a pre-trained encoder.

    g2sd train --config=linprobe:model=b16 --workdir=runs/probe_b \\
        --config.encoder.checkpoint=runs/mae_b

Published (MAE): 67.8 / 76.0 / 77.2 % top-1 on ImageNet-1k for ViT-B / L / H.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments=""):
    args = common.arguments(arguments, model="b16")
    config = common.base()
    config.stage = "linprobe"
    config.batch = 16384
    config.total_epochs = 50.0 if args.model in ("l16", "h14") else 90.0
    config.encoder = ConfigDict()
    config.encoder.checkpoint = ""  # Workdir or file with an encoder; random:SEED.
    config.model = common.classifier(args.model, pool="cls")
    config.augment = common.augment(crop_area=(0.08, 1.0), crop_tries=1, flip=0.5)
    config.optim = common.lars("linprobe", lr=0.1 * 16384 / 256, warmup_epochs=10.0)
    config = common.smoke(config, args)
    if args.smoke:
        config.batch = 64  # Or a step would take no time at all.
    return config
