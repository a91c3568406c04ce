# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finished runs for tests of evaluation, export and reports."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import runs
import tiny
from g2sd_jax import checkpoint, core, stages
from g2sd_jax import workdir as files
from g2sd_jax.data import source
from g2sd_jax.models import upernet


def made(
    name: str, model: Mapping | None = None, data: Mapping | None = None
) -> tuple[ConfigDict, core.Stage, dict]:
    """A tiny stage and random variables, drawn without compiling `init`.

    Args:
        name: the stage.
        model: changes of `config.model`.
        data: changes of `config.data`.

    Returns:
        (config, stage, variables).
    """
    config = runs.small(name)
    with config.unlocked():
        config.model.update(model or {})
        config.data.update(data or {})
        if "teacher" in config:
            config.teacher.model.image_size = config.model.image_size
    stage = stages.build(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    # No bias is zero, no scale one.
    draw = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
    variables = jax.tree.map(draw, shapes)
    if "batch_stats" in variables:  # Of which half are variances.
        positive = lambda leaf: np.abs(leaf) + np.float32(0.5)
        variables["batch_stats"] = jax.tree.map(positive, variables["batch_stats"])
    return config, stage, variables


def workdir(
    folder: pathlib.Path,
    name: str,
    model: Mapping | None = None,
    data: Mapping | None = None,
    **described: Any,
) -> tuple[str, ConfigDict, dict]:
    """Writes the workdir of a finished run of a stage of `made`.

    Args:
        folder: the workdir is in it.
        name: the stage.
        model: changes of `config.model`.
        data: changes of `config.data`.
        **described: additions to the checkpoint's description, such as class_names.
            Its data is what the config describes.

    Returns:
        (path of the workdir, config, variables).
    """
    config, stage, variables = made(name, model, data)
    path = str(folder / "run")
    manager = checkpoint.Manager(path, keep=1)
    model_state = {key: tree for key, tree in variables.items() if key != "params"}
    state = core.TrainState(jnp.int32(1), variables["params"], model_state, {})
    describe = dict(stage.describe, stage=config.stage, data=source.describe(config))
    manager.save(1, state, dict(describe, **described))
    manager.close()
    files.write_json(f"{path}/{files.CONFIG}", files.to_json_dict(config))
    return path, config, variables


def segmentor_logits(config: ConfigDict, variables: dict) -> jax.Array:
    """The logits of a segmentor for two images of `tiny.images`."""
    network = upernet.segmentor(config.model, config.data.classes)
    apply = lambda variables, image: network.apply(variables, image, False).logits
    return jax.jit(apply)(variables, tiny.images(config, count=2))
