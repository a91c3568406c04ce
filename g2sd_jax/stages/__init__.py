# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The papers: one file per training stage, found by `config.stage`.

A stage has `build(config) -> core.Stage`; `NEEDS`, the keys its recipe has beside those
that every recipe has; and `DISTILLS`: "generic" if it learns a teacher's features,
whatever they are used for, "specific" if it learns a teacher's answers to a task, else
"".
"""

import importlib
import pkgutil
import types
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from g2sd_jax import core, errors, parallel, tasks
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.weights import resolution


def names() -> list[str]:
    """The stages, which are the files of this folder."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def complete(config: ConfigDict) -> None:
    """Sets the keys of `config` that its weight files, or other keys, answer.

    See `weights.resolution` and `tasks.complete`.

    A second time it changes nothing.
    """
    model = config.get("model")
    if model is not None and resolution.wants_file(model):
        key = "encoder.checkpoint" if "encoder" in config else "init_from"
        checkpoint = config.encoder.checkpoint if "encoder" in config else ""
        checkpoint = checkpoint or config.get("init_from", "")
        weights = resolution.fill(model, checkpoint, f"config.{key}", "config.model")
        if weights:
            resolution.fill_pictures(config.data, weights)
    if "teacher" in config and resolution.wants_file(config.teacher.model):
        complete_teacher(config)
    distill = config.get("distill", {})
    if "teacher_block" in distill and distill.teacher_block is None:
        where = "config.teacher.model"
        decoder = mae.decoder(config.teacher.model, where)
        with distill.unlocked():
            distill.teacher_block = (decoder.depth + 1) // 2
    if "task" in config:
        tasks.complete(config)


def complete_teacher(config: ConfigDict) -> None:
    """Sets the keys of a teacher, and of what is learned of it, by its weights."""
    kind, teacher = distills(config.stage), config.teacher
    weights = resolution.fill(
        teacher.model,
        teacher.checkpoint,
        "config.teacher.checkpoint",
        "config.teacher.model",
        with_head=kind == "specific",
    )
    if weights is None:
        return
    if config.data.classes == 0 and config.get("distill", {}).get("classes") == 0:
        with config.distill.unlocked():
            config.distill.classes = weights.classes() or 0
    if "mean" in teacher:
        resolution.fill_pictures(teacher, weights, "config.teacher")
    if kind == "generic":
        resolution.fit_grid(teacher.model, vit.grid(config.model))
    else:
        with teacher.unlocked():
            teacher.model.image_size = tuple(config.model.image_size)


def build(config: ConfigDict) -> core.Stage:
    """The `Stage` of the file that `config.stage` names; completes the config."""
    complete(config)
    name = config.stage
    stage = _module(name)
    because = f"config.stage={name} (the shipped recipe {name} has them)"
    errors.require(config, "config", stage.NEEDS, because)
    return stage.build(config)


def distills(name: str) -> str:
    """How the stage of that name distils: generic, specific, or "" for not at all."""
    return _module(name).DISTILLS


def _module(name: str) -> types.ModuleType:
    errors.one_of("config.stage", name, names())
    return importlib.import_module(f"g2sd_jax.stages.{name}")


def frozen_variables(
    stage: core.Stage, config: ConfigDict, example: Mapping, mesh: jax.sharding.Mesh
) -> tuple[dict, dict[str, float]]:
    """Loads the frozen variables, probes them, and places those that the loss needs.

    Args:
        stage: whose variables they are.
        config: the run's.
        example: a host batch, for the probe.
        mesh: to place them on.
    Returns:
        The variables, and the metrics of the probe.
    """
    frozen = stage.frozen()
    if not frozen:
        return {}, {}
    batch = parallel.to_global(example, mesh)
    # Measured from the host's copy: the part that is not needed is never placed twice.
    measured = jax.device_get(jax.jit(stage.probe)(frozen, batch))
    measured = {name: float(value) for name, value in measured.items()}
    for name, value in measured.items():
        parallel.print_once(f"{name}: {value:.4g} (measured before step 0)")
    dtype = layers.compute_options(config)["dtype"]
    frozen = parallel.cast(stage.trim(frozen), dtype)
    return parallel.place(frozen, parallel.shardings(frozen, mesh)), measured
