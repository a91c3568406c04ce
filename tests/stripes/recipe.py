# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training on invented stripes: a recipe outside of the package.

g2sd train --config=tests/stripes/recipe.py:smoke --workdir=runs/stripes
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, model="ti16")
    config = common.base()
    config.stage = "finetune"
    config.task = "stripes"
    config.batch = 64
    config.total_epochs = 10.0
    config.init_from = ""  # Workdir or file of an earlier run.
    config.model = common.vit(args.model)
    config.loss = ConfigDict()
    config.loss.frequency = 0.5  # Weight of the squared error of frequencies.
    config.loss.divisor = "examples"  # examples, cycles: what that error is divided by.
    config.data.source = "fake"
    config.data.train_examples = 4096
    config.data.classes = 4  # Directions.
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.17, 0.17, 0.17)
    config.optim = common.adamw(
        "finetune",
        schedule="steps",  # Without a milestone: one rate.
        milestones=(),
        decay=1.0,
        warmup_start=1.0,
    )
    return common.smoke(config, args, model=common.SMALL_STUDENT, data=dict(classes=4))
