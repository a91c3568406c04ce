# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The central table of `chains/cifar10_controls`, for days when there is no GPU.

    CHAIN=chains/cifar10_cpu nice bash launch/cifar10.sh \\
        'DIR/cifar10_{split}.tar.gz' runs/cifar10_cpu --workers=1

About 1,000 TFLOP of matrix products; two cores that other programs shared made 13 GFLOP
a second each, so 20 core-hours there. Stopped at any time, it goes on. The teacher is
smaller than the GPU's, stages are shorter, and so are their ratios: see `cost`.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import cifar10_controls
from g2sd_jax.configs.chains.cifar10_controls import SHAPE, Scale

TEACHER = dict(SHAPE, width=128, depth=6, heads=4)
CPU = Scale(
    teacher=TEACHER,
    teacher_mae=TEACHER | dict(decoder="dec64d4b", dec_heads=2),
    cost=dict(
        teacher_mae=215.1, mae=93.4, generic=151.8, finetune=193.2, specific=360.3
    ),
    epochs=3.0,
    batch=128,
    rate=1e-3,
    subsets={"tenth": (5_000, 64, 8.0)},
    dtype="float32",
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, seeds=3, path="", epochs=CPU.epochs)
    steps = cifar10_controls.central(CPU._replace(epochs=args.epochs))
    return cifar10_controls.chain(args, steps)
