# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Digests: the same on every device and sharding, another after any change of a bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from g2sd_jax import digest, parallel

DTYPES = (np.float32, np.int32, np.uint8, np.float16, jnp.bfloat16, np.bool_)
SHAPES = ((), (0,), (5,), (3, 4, 7), (digest.CHUNK + 3,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_and_hosts_agree(dtype, rng):
    for shape in SHAPES:
        array = (10 * rng.normal(size=shape)).astype(dtype)
        on_device = jax.jit(digest.of_jax)(jnp.asarray(array))
        assert int(digest.of_numpy(array)) == int(on_device), shape


def test_sharding_changes_nothing(rng):
    mesh = parallel.make_mesh(ConfigDict(dict(data=2, fsdp=4)))
    array = rng.normal(size=(8, 12)).astype(np.float32)
    expected = int(digest.of_numpy(array))
    for spec in ((), ("fsdp",), (None, "fsdp"), (("data", "fsdp"),)):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        placed = jax.device_put(array, sharding)
        assert digest.of({"x": placed}) == {"x": f"{expected:08x}"}
        # As of several processes, which can not fetch what they digest.
        everywhere = NamedSharding(mesh, PartitionSpec())
        made = digest._on_device(everywhere)(placed)
        assert made.is_fully_replicated and int(made) == expected


def test_every_bit_place_and_length_counts(rng):
    array = rng.normal(size=9).astype(np.float32)
    words = array.view(np.uint32)
    digests = {int(digest.of_numpy(array))}
    for place in range(9):
        for bit in range(32):
            words[place] ^= np.uint32(1 << bit)
            digests.add(int(digest.of_numpy(array)))
            words[place] ^= np.uint32(1 << bit)
    assert len(digests) == 1 + 9 * 32
    others = (array[::-1], array[:-1], np.append(array, np.float32(0)), 0 * array)
    assert int(digest.of_numpy(array)) not in {int(digest.of_numpy(x)) for x in others}
    # Two flips of a sign cancel in a sum of weighted words.
    array[[2, 5]] *= -1
    assert int(digest.of_numpy(array)) not in digests


def test_json_is_digested_as_it_comes_back():
    assert digest.of_json({"b": (1, 2), "a": 0.1}) == digest.of_json(
        {"a": 0.1, "b": [1, 2]}
    )
    assert digest.of_json({"a": 0.1}) != digest.of_json({"a": 0.2})
