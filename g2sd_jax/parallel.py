# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Placement: the mesh, where each array lives, and how hosts meet.

One `jax.jit` over a (data, fsdp) mesh; models and losses know nothing of it. The batch
is split over both axes, parameters and optimiser over `fsdp`.
"""

import io
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")
SMALL = 2**12  # Elements below which a parameter is cheaper whole than gathered.


def make_mesh(config, devices=None) -> Mesh:
    """The mesh of `config.mesh`: `dict(data=-1, fsdp=1)`, at most one -1."""
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
    known = data * fsdp if -1 not in shape else max(shape)
    if count % known or (-1 not in shape and count != known):
        raise ValueError(
            f"config.mesh=(data={data}, fsdp={fsdp}) does not fit {count} devices; "
            "use -1 for the axis that should take the rest."
        )
    data, fsdp = (count // known if side == -1 else side for side in shape)
    grid = np.array(devices).reshape(data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(config, mesh: Mesh) -> None:
    """Refuses a batch that devices and micro-batches do not divide."""
    parts = mesh.size * config.accumulate
    if config.accumulate < 1 or config.batch < 1 or config.batch % parts:
        near = max(1, round(config.batch / max(parts, 1))) * max(parts, 1)
        raise ValueError(
            f"config.batch={config.batch} is not a positive multiple of {mesh.size} "
            f"devices x config.accumulate={config.accumulate}; use {near}."
        )


def sharding(leaf, mesh: Mesh) -> NamedSharding:
    """Over `fsdp`: the longest axis it divides; small arrays stay whole.

    The leading axis of a stack of blocks is short, so it is only split when nothing
    else can be: a loop over the blocks then needs no gather per iteration.
    """
    width = mesh.shape["fsdp"]
    axes = [axis for axis, side in enumerate(leaf.shape) if side % width == 0]
    if width == 1 or leaf.size < SMALL or not axes:
        return replicated(mesh)
    chosen = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, P(*(None,) * chosen, "fsdp"))


def shardings(tree, mesh: Mesh):
    """The placement of every leaf of parameters, optimiser state or a teacher."""
    return jax.tree.map(lambda leaf: sharding(leaf, mesh), tree)


def gathered(tree, mesh: Mesh | None):
    """Inside a step: the whole of what is kept split over `fsdp`.

    Without this hint the compiler also splits the products along the parameters, and
    sends activations about: bytes that grow with the batch. The stacks of blocks are
    gathered whole, in the compute dtype, which for a ViT-H is 1.3 GB.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def scattered(tree, mesh: Mesh | None):
    """Inside a step: each device keeps its own part of what all of them computed."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def placed_shape(shape, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P(AXES))


def to_global(batch: Mapping, mesh: Mesh) -> dict:
    """Host arrays -> global arrays; each host adds its rows, in process order."""
    where = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # The one copy of a step that is on purpose.
        return {
            key: jax.make_array_from_process_local_data(where, np.asarray(value))
            for key, value in batch.items()
        }


def to_local(outputs):
    """The rows of batch-sharded outputs this host put in, as numpy."""

    def rows(array):
        whole = array.sharding.shard_shape(array.shape)[1:] == array.shape[1:]
        assert whole, f"only rows may be split, not {array.sharding}"
        shards = {s.index[0].start or 0: s for s in array.addressable_shards}
        return np.concatenate(
            [jax.device_get(shards[at].data) for at in sorted(shards)]
        )

    return jax.tree.map(rows, outputs)


def place(tree, where):
    """Puts a tree of host or device arrays where `where` (same tree) says."""
    return jax.tree.map(_place, tree, where)


def _place(leaf, sharding):
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])


def cast(variables: Mapping, dtype) -> dict:
    """Parameters in `dtype`: how a teacher is kept. Its batch statistics stay float32.

    Those are few, and a rounded variance would scale whole channels.
    """

    def leaf(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floating else x

    return {**variables, "params": jax.tree.map(leaf, variables["params"])}


def gather_states(state: Mapping) -> list[dict]:
    """Every host's evaluator state (a dict of numpy arrays of any shape)."""
    if jax.process_count() == 1:
        return [dict(state)]
    packed = io.BytesIO()
    np.savez(packed, **state)
    mine = np.frombuffer(packed.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(mine.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    everyone = multihost_utils.process_allgather(padded)
    states = []
    for row, size in zip(everyone, sizes, strict=True):
        with np.load(io.BytesIO(row[:size].tobytes())) as arrays:
            states.append({key: arrays[key] for key in arrays.files})
    return states
