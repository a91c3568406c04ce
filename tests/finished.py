# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finished runs for tests of what comes after training."""

import jax
import jax.numpy as jnp

import runs
import tiny
from g2sd_jax import checkpoint, core, stages


def workdir(folder, name, model=None, data=None, **described):
    """A tiny stage's checkpoint in `folder`, untrained: its path, config, variables.

    Args:
        folder: a pathlib.Path.
        name: the stage.
        model: changes of `config.model`.
        data: changes of `config.data`.
        **described: more of the description, such as class_names.
    """
    config = runs.small(name)
    with config.unlocked():
        config.model.update(model or {})
        if "teacher" in config:
            config.teacher.model.image_size = config.model.image_size
        config.data.update(data or {})
    stage = stages.build(config)
    init = jax.jit(lambda key: stage.init(key, {}))
    variables = tiny.noisy(jax.device_get(init(jax.random.key(0))))
    path = str(folder / "run")
    manager = checkpoint.Manager(path)
    state = core.TrainState(jnp.int32(1), variables["params"], {}, {})
    manager.save(1, state, dict(stage.describe, stage=name, **described))
    manager.close()
    return path, config, variables
