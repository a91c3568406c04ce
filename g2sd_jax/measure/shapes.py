# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes and shardings of a step's arguments: no data, no weights, no devices."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from g2sd_jax import core, parallel
from g2sd_jax.models import layers

FEW = 2  # Examples that are really made, to learn a batch's shapes.


def without_weights(config: ConfigDict) -> ConfigDict:
    """Copies the recipe with untrained networks."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "init_from" in config:
            config.init_from = ""
        for group in ("teacher", "encoder"):
            if group in config:
                config[group].checkpoint = "random:0"
    return config


def on_fakes(config: ConfigDict) -> ConfigDict:
    """Copies the recipe with invented examples, for shapes of evaluation batches."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.source = "fake"
    return config


def small_batch(config: ConfigDict) -> ConfigDict:
    """Copies the recipe with a batch of `FEW` examples."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch = FEW
        config.accumulate = 1
    return config


def of_batch(
    batch: Mapping[str, ArrayLike], size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Scales the shapes of a batch of `FEW` examples to one of `size`."""
    where = parallel.batch_sharding(mesh)
    return {
        key: jax.ShapeDtypeStruct(
            (len(value) * size // FEW, *value.shape[1:]), value.dtype, sharding=where
        )
        for key, value in batch.items()
    }


def of_frozen(stage: core.Stage, config: ConfigDict, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shapes of the frozen variables, trimmed and cast as in a run."""
    dtype = layers.compute_options(config)["dtype"]
    trim = lambda frozen: parallel.cast(stage.trim(frozen), dtype)
    frozen = stage.frozen()
    shapes = jax.eval_shape(trim, frozen) if frozen else {}
    return jax.tree.map(
        parallel.with_sharding, shapes, parallel.shardings(shapes, mesh)
    )


def of_going(
    config: ConfigDict, mesh: jax.sharding.Mesh
) -> jax.ShapeDtypeStruct | None:
    """Returns the shape of the flag that the step before was finite, if it is used."""
    if config.nonfinite.policy == "skip":
        return None
    finite = jax.ShapeDtypeStruct((), bool)
    return parallel.with_sharding(finite, parallel.replicated(mesh))


def key_of(mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """Returns the shape of a step's key."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return parallel.with_sharding(key, parallel.replicated(mesh))
