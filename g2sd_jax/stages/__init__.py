# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The papers: one file per training stage, found by `config.stage`.

A stage has `build(config) -> core.Stage`, and `NEEDS`, the keys its recipe has beside
those that every recipe has.
"""

import importlib
import pkgutil

from g2sd_jax import core


def known() -> list[str]:
    """The stages, which are the files of this folder."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def build(config) -> core.Stage:
    """The `Stage` of the file that `config.stage` names."""
    name = core.one_of("config.stage", config.stage, known())
    stage = importlib.import_module(f"g2sd_jax.stages.{name}")
    because = f"config.stage={name} (the shipped recipe {name} has them)"
    core.require(config, "config", stage.NEEDS, because)
    return stage.build(config)
