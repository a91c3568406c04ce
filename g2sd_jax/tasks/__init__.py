# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a finished network is for; `config.task` names the file."""

import importlib

from g2sd_jax import core

TASKS = ("classification",)


def build(config) -> core.Task:
    """The `Task` of the file that `config.task` names."""
    name = core.one_of("config.task", config.task, TASKS)
    return importlib.import_module(f"g2sd_jax.tasks.{name}").build(config)
