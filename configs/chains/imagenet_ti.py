# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The central table on ImageNet-1k: ViT-B teaches ViT-Ti, every recipe published.

    g2sd chain --config=chains/imagenet_ti --workdir=runs/imagenet_ti

Two stages of the teacher and six of the student, 100 to 800 epochs each: for a pod.
Published top-1: 75.2 (MAE), 75.9 (MAE ms), 76.3 (G2SD w/o S.D), 77.0 (G2SD).
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import table

NOTE = (
    "The recipes are the published ones where there is one (the student's own masked "
    "pre-training is given MAE's)."
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, seeds=1, path="")
    shared = {"data.path": args.path, "eval_epochs": 10.0}
    recipes = table.published(args, "ti16", "b16", shared)
    return table.chain(
        "ViT-B to ViT-Ti on ImageNet-1k", NOTE, recipes, range(args.seeds)
    )
