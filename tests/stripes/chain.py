# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A short run on stripes, and a longer one that goes on from it."""

from ml_collections import ConfigDict

import runs
import stripes
from g2sd_jax.configs.chains import table

SHARED = dict(
    model=runs.SMALL,
    batch=16,
    accumulate=2,
    data=dict(train_examples=64),
    eval_epochs=2.0,
    optim=dict(lr=3e-3, warmup_epochs=0.0),
)


def get_config(arguments: str = "") -> ConfigDict:
    short = dict(total_steps=4, first_batch_images=0)
    short["checkpoint"] = dict(every=2, keep=2)
    long = dict(total_steps=48, first_batch_images=4)
    long["checkpoint"] = dict(every=100, keep=1, best="eval/error")
    recipe = f"{stripes.RECIPE}:smoke"
    config = table.chain(
        "Stripes",
        "Invented pictures.",
        {"short": (recipe, SHARED | short), "long": (recipe, SHARED | long)},
        seeds=(0,),
        links={"short": {}, "long": {"init_from": "{short}"}},
        rows=(("short", "short"), ("long", "long")),
    )
    config.reconstructions = ""  # None of its steps predicts pixels.
    return config
