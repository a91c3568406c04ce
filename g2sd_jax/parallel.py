# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding: the device mesh, the placement of arrays, and exchange between hosts.

One `jax.jit` over a (data, fsdp) mesh; models and losses know nothing of it. The batch
is split over both axes, parameters and optimiser state over `fsdp`.
"""

import io
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

AXES = ("data", "fsdp")
SMALL = 2**12  # Elements below which replicating a parameter is cheaper than gathering.


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the (data, fsdp) mesh.

    Args:
        config: `config.mesh` of a recipe: `data` and `fsdp`, at most one of them -1.
        devices: devices to use; None for all.

    Raises:
        ValueError: the devices do not fit the mesh.
    """
    devices = jax.devices() if devices is None else devices
    # In the order of the processes, so that each one's rows of a batch are contiguous
    # and the global order of examples does not depend on the topology.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    data, fsdp = shape = (config.data, config.fsdp)
    count = len(devices)
    if any(side < 1 and side != -1 for side in shape) or shape == (-1, -1):
        raise ValueError(
            f"config.mesh=(data={data}, fsdp={fsdp}): each is a positive number, and "
            "one of them may be -1 to take the devices that are left."
        )
    fixed = data * fsdp if -1 not in shape else max(shape)
    if count % fixed or (-1 not in shape and count != fixed):
        raise ValueError(
            f"config.mesh=(data={data}, fsdp={fsdp}) does not fit {count} devices; "
            "use -1 for the axis that should take the rest."
        )
    data, fsdp = (count // fixed if side == -1 else side for side in shape)
    grid = np.array(devices).reshape(data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses a batch size that devices and micro-batches do not divide."""
    parts = mesh.size * config.accumulate
    if config.accumulate < 1 or config.batch < 1 or config.batch % parts:
        near = max(1, round(config.batch / max(parts, 1))) * max(parts, 1)
        raise ValueError(
            f"config.batch={config.batch} is not a positive multiple of {mesh.size} "
            f"devices x config.accumulate={config.accumulate}; use {near}."
        )


def sharding(leaf: jax.Array | jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    """Shards the longest axis that `fsdp` divides; small arrays are replicated.

    The leading axis of a stack of blocks is short, so it is only split when nothing
    else can be: a loop over the blocks then needs no gather per iteration.
    """
    width = mesh.shape["fsdp"]
    axes = [axis for axis, side in enumerate(leaf.shape) if side % width == 0]
    if width == 1 or leaf.size < SMALL or not axes:
        return replicated(mesh)
    chosen = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, P(*(None,) * chosen, "fsdp"))


def shardings(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
    """Applies `sharding` to every leaf of parameters, optimiser state or a teacher."""
    return jax.tree.map(lambda leaf: sharding(leaf, mesh), tree)


def gather_over_fsdp(tree: chex.ArrayTree, mesh: Mesh | None) -> chex.ArrayTree:
    """Replicates arrays that are sharded over `fsdp`; for use inside a step.

    Without this hint the compiler also splits the products along the parameters, and
    sends activations about: bytes that grow with the batch. The stacks of blocks are
    gathered at once, in the compute dtype, which for a ViT-H is 1.3 GB.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def scatter_over_fsdp(tree: chex.ArrayTree, mesh: Mesh | None) -> chex.ArrayTree:
    """Shards arrays, such as gradients, over `fsdp`; for use inside a step."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a full copy on every device."""
    return NamedSharding(mesh, P())


def with_sharding(
    shape: jax.Array | jax.ShapeDtypeStruct, where: NamedSharding
) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array together with a sharding."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, P(AXES))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns host batches into one global batch; its rows are in process order."""
    where = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # The one copy of a step that is on purpose.
        return {
            key: jax.make_array_from_process_local_data(where, np.asarray(value))
            for key, value in batch.items()
        }


def to_local(outputs: chex.ArrayTree) -> chex.ArrayTree:
    """Returns this host's own rows of batch-sharded outputs, as numpy arrays."""

    def rows(array: jax.Array) -> np.ndarray:
        rows_only = array.sharding.shard_shape(array.shape)[1:] == array.shape[1:]
        assert rows_only, f"only rows may be split, not {array.sharding}"
        shards = {s.index[0].start or 0: s for s in array.addressable_shards}
        return np.concatenate(
            [jax.device_get(shards[start].data) for start in sorted(shards)]
        )

    return jax.tree.map(rows, outputs)


def place(tree: chex.ArrayTree, where: chex.ArrayTree) -> chex.ArrayTree:
    """Moves host or device arrays to their shardings.

    Args:
        tree: arrays; on a host, each holds the full global value.
        where: the same tree of `Sharding`s.
    """
    return jax.tree.map(_place, tree, where)


def _place(leaf: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])


def cast(variables: Mapping, dtype: jax.typing.DTypeLike) -> dict:
    """Casts the parameters of a frozen model to `dtype`; batch statistics stay float32.

    Those are small, and a rounded variance would scale all of its channel.
    """

    def leaf(x: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floating else x

    return {**variables, "params": jax.tree.map(leaf, variables["params"])}


def gather_states(state: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Gathers the evaluator states of all hosts; shapes may differ between hosts."""
    if jax.process_count() == 1:
        return [dict(state)]
    packed = io.BytesIO()
    np.savez(packed, **state)
    mine = np.frombuffer(packed.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(mine.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    states = []
    for row, size in zip(rows, sizes, strict=True):
        with np.load(io.BytesIO(row[:size].tobytes())) as arrays:
            states.append({key: arrays[key] for key in arrays.files})
    return states


def print_once(line: str) -> None:
    """Prints a line on the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)
