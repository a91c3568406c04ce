# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a finished network is for; `config.task` names the module.

A task has `build(config) -> core.Task`; `NEEDS`, the keys its recipe has beside those
of its stage; and `RECIPE`, that of its fine-tuning, shipped or the path of a file. It
may have `complete(config)`, which sets keys that are None by others.
"""

import importlib
import types

from ml_collections import ConfigDict

from g2sd_jax import core, errors

# Value of `config.task`: the module, imported when it is asked for.
TASKS = {
    "classification": f"{__name__}.classification",
    "segmentation": f"{__name__}.segmentation",
    "detection": f"{__name__}.detection",
}


def build(config: ConfigDict) -> core.Task:
    """The `Task` of the module that `config.task` names."""
    return _checked(config).build(config)


def complete(config: ConfigDict) -> None:
    """Sets the keys of a config that its task derives from others, where it has any.

    A second time it changes nothing.
    """
    task = _checked(config)
    if hasattr(task, "complete"):
        task.complete(config)


def recipe(name: str) -> str:
    """The recipe of fine-tuning for the task of that name."""
    return _module(name).RECIPE


def _checked(config: ConfigDict) -> types.ModuleType:
    """The module of `config.task`, whose keys the config has."""
    task = _module(config.task)
    because = f"config.task={config.task} (the recipe {task.RECIPE} has them)"
    errors.require(config, "config", task.NEEDS, because)
    return task


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(errors.lookup("config.task", name, TASKS))
