# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A third task as a user would bring it: which way stripes run, and how many there are.

The package knows nothing of it. `ROWS` are all the lines that make it known.
"""

import pathlib

import pytest

from g2sd_jax import kinds, tasks
from g2sd_jax.configs import ranges
from g2sd_jax.data.memory import fake
from g2sd_jax.weights import parts
from stripes import data

RECIPE = str(pathlib.Path(__file__).with_name("recipe.py"))
CHAIN = str(pathlib.Path(__file__).with_name("chain.py"))
ROWS = (  # (table, name, entry)
    (tasks.TASKS, "stripes", "stripes.task"),
    (kinds.KINDS, "stripes", "stripes.kind"),
    (fake.MAKERS, "stripe", data.make),
    (parts.HEADS, "direction", "a head for stripes"),
    (ranges.RANGES, "loss.frequency", ranges.FACTOR),
)


def register(patch: pytest.MonkeyPatch) -> None:
    """Adds every row until the patch is undone."""
    for table, name, entry in ROWS:
        patch.setitem(table, name, entry)
