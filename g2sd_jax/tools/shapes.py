# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a step is given, by shape and place alone: no data, no weights, no devices."""

import jax

from g2sd_jax import parallel
from g2sd_jax.models import layers

FEW = 2  # Examples that are really made, to learn a batch's shapes.


def without_weights(config):
    """The recipe with untrained networks, its length as it was."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "init_from" in config:
            config.init_from = ""
        for group in ("teacher", "encoder"):
            if group in config:
                config[group].checkpoint = "random:0"
    return config


def on_fakes(config):
    """The recipe on invented examples, for the shapes of an evaluation batch."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.source = "fake"
    return config


def few(config):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch = FEW
        config.accumulate = 1
    return config


def of_batch(batch, size: int, mesh) -> dict:
    """The shapes of `batch`, made of `FEW` examples, as they are with `size`."""
    where = parallel.batch_sharding(mesh)
    return {
        key: jax.ShapeDtypeStruct(
            (len(value) * size // FEW, *value.shape[1:]), value.dtype, sharding=where
        )
        for key, value in batch.items()
    }


def of_frozen(stage, config, mesh):
    """What is frozen, trimmed and cast as the run would have it."""
    dtype = layers.machine(config)["dtype"]
    trim = lambda frozen: parallel.cast(stage.trim(frozen), dtype)
    frozen = stage.frozen()
    shapes = jax.eval_shape(trim, frozen) if frozen else {}
    return jax.tree.map(parallel.placed_shape, shapes, parallel.shardings(shapes, mesh))


def of_going(config, mesh):
    """Whether the step before was finite, which a run asks where it stops at one."""
    if config.nonfinite.policy == "skip":
        return None
    finite = jax.ShapeDtypeStruct((), bool)
    return parallel.placed_shape(finite, parallel.replicated(mesh))


def key_of(mesh):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return parallel.placed_shape(key, parallel.replicated(mesh))
