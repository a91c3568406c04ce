# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a finished network is for; `config.task` names the file.

A task has `build(config) -> core.Task`, and `NEEDS`, the keys its recipe has beside
those of its stage.
"""

import importlib

from g2sd_jax import core

TASKS = ("classification", "segmentation")


def build(config) -> core.Task:
    """The `Task` of the file that `config.task` names."""
    name = core.one_of("config.task", config.task, TASKS)
    task = importlib.import_module(f"g2sd_jax.tasks.{name}")
    because = f"config.task={name} (the recipe finetune:task={name} has them)"
    core.require(config, "config", task.NEEDS, because)
    return task.build(config)
