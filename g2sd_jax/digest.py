# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Digests of arrays: 32 bits that change with any bit of an array.

Each element is mixed with its place, and the results are added up, so that neither the
sharding nor the order of the sum matters. An array on an accelerator is digested there:
that reads it once, at the speed of its memory, and fetches four bytes.
"""

import functools
import json
import math
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

CHUNK = 1 << 16  # Elements that stay in a core's cache.
PLACE = np.uint32(0x9E3779B1)  # Distinguishes places: odd, near the golden ratio.


def of(tree: jax.typing.ArrayLike | Mapping) -> dict[str, str]:
    """Digests every array of a tree, by its path.

    Args:
        tree: of numpy arrays, or of JAX's, which may be sharded over processes.

    Returns:
        {`params/head/bias`: eight hexadecimal digits}.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    digests = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _of_array(leaf)
        for path, leaf in leaves
    }
    return {
        name: f"{int(value):08x}" for name, value in jax.device_get(digests).items()
    }


def of_json(value: Mapping) -> str:
    """Digests a JSON value: CRC-32 of its text with sorted keys."""
    text = json.dumps(value, sort_keys=True)
    return f"{zlib.crc32(json.dumps(json.loads(text), sort_keys=True).encode()):08x}"


def _of_array(array: np.ndarray | jax.Array) -> np.uint32 | jax.Array:
    if not isinstance(array, jax.Array):
        return of_numpy(np.asarray(array))
    on_host = all(device.platform == "cpu" for device in array.devices())
    if on_host and array.is_fully_addressable:
        return of_numpy(jax.device_get(array))  # No copy, unless it is sharded.
    everywhere = None
    if isinstance(array.sharding, NamedSharding):
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    return _on_device(everywhere)(array)


@functools.cache
def _on_device(sharding: Sharding | None) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(of_jax, out_shardings=sharding)


def of_numpy(array: np.ndarray) -> np.uint32:
    """Digests an array of a host."""
    array = np.ascontiguousarray(array).reshape(-1)
    words = array.view(f"u{min(array.itemsize, 4)}")
    places = np.arange(min(words.size, CHUNK), dtype=np.uint32) * PLACE
    total = 0
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK]
        mixed = places[: part.size] + np.uint32(start * int(PLACE) % 2**32)
        mixed ^= part
        total += int(_mix(mixed).sum(dtype=np.uint32))
    return np.uint32((total + words.size) % 2**32)


def of_jax(array: jax.Array) -> jax.Array:
    """Digests an array as `of_numpy` does, on its devices."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis in range(words.ndim):  # Flattening would move what is sharded.
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place + index * stride if axis else index * stride
    mixed = _mix(words ^ place * PLACE)
    return mixed.sum(dtype=jnp.uint32) + np.uint32(words.size % 2**32)


def _mix(words):
    """Maps 32 bits one to one, each to depend on all (MurmurHash3 by A. Appleby)."""
    words *= np.uint32(0x85EBCA6B)
    words ^= words >> 13
    words *= np.uint32(0xC2B2AE35)
    words ^= words >> 16
    return words
