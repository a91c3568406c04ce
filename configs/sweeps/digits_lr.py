# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How the digits teacher takes its learning rate: three rates, two seeds.

python launch/sweep.py --sweep=configs/sweeps/digits_lr.py --workdir=runs/lr
"""

from g2sd_jax.configs.chains import digits

METRIC, BEST = "eval/top1", "max"
RECIPE, SHARED = digits.steps()["teacher"]  # Here from scratch, not from its MAE.
SHARED = SHARED | {"progress": False, "eval_epochs": 4.0}


def get_sweep() -> dict[str, tuple]:
    """A grid, every value with every other; a list of override dicts is taken too."""
    return {"optim.lr": (5e-4, 2e-3, 8e-3), "seed": (0, 1)}
