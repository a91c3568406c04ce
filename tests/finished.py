# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finished runs for tests of what comes after training."""

import jax
import jax.numpy as jnp
import numpy as np

import runs
from g2sd_jax import checkpoint, core, stages
from g2sd_jax import workdir as files


def made(name, model=None):
    """A tiny stage's config, itself, and variables that cost no compilation.

    Args:
        name: the stage.
        model: changes of `config.model`.
    """
    config = runs.small(name)
    with config.unlocked():
        config.model.update(model or {})
        if "teacher" in config:
            config.teacher.model.image_size = config.model.image_size
    stage = stages.build(config)
    shapes = jax.eval_shape(lambda key: stage.init(key, {}), jax.random.key(0))
    rng = np.random.default_rng(0)
    # No bias is zero, no scale one.
    draw = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
    variables = jax.tree.map(draw, shapes)
    if "batch_stats" in variables:  # Of which half are variances.
        positive = lambda leaf: np.abs(leaf) + np.float32(0.5)
        variables["batch_stats"] = jax.tree.map(positive, variables["batch_stats"])
    return config, stage, variables


def workdir(folder, name, model=None, **described):
    """Such a run's checkpoint in `folder`: its path, config, variables.

    Args:
        folder: a pathlib.Path.
        name: the stage.
        model: changes of `config.model`.
        **described: more of the description, such as class_names.
    """
    config, stage, variables = made(name, model)
    path = str(folder / "run")
    manager = checkpoint.Manager(path, keep=1)
    kept = {key: value for key, value in variables.items() if key != "params"}
    state = core.TrainState(jnp.int32(1), variables["params"], kept, {})
    manager.save(1, state, dict(stage.describe, stage=config.stage, **described))
    manager.close()
    files.write_json(f"{path}/{files.CONFIG}", files.plain(config))
    return path, config, variables
