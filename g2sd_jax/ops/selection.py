# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Exact choice of the largest of many numbers, without sorting them.

A sort of 200,000 numbers takes 11 s to compile, and `lax.top_k` gathers a batch that is
split over devices. Here a threshold is bisected on the bits of the numbers, which takes
32 sums, each over one row of the batch.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32, Integer, UInt32


def ordered_bits(values: Float32[ArrayLike, "*shape"]) -> UInt32[Array, "*shape"]:
    """Whole numbers in the order of the values; 0 and 1 stand for none of them."""
    values = jnp.asarray(values, jnp.float32)
    values = jnp.where(values == 0, 0.0, values)  # -0.0 equals it, with other bits.
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def largest(
    values: Float32[ArrayLike, " N"],
    candidates: Bool[ArrayLike, " N"],
    count: Integer[ArrayLike, ""],
) -> Bool[Array, " N"]:
    """Marks the `count` largest values among the candidates, the first of equal ones.

    Args:
        values: finite.
        candidates: which of them may be chosen; fewer than `count` are all chosen.
        count: how many, at least 0; may be traced.
    """
    keys = jnp.where(candidates, ordered_bits(values), jnp.uint32(0))
    count = jnp.minimum(count, jnp.sum(candidates, dtype=jnp.int32))

    def settle(step, threshold):
        higher = threshold | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
        enough = jnp.sum(keys >= higher, dtype=jnp.int32) >= count
        return jnp.where(enough, higher, threshold)

    # The largest threshold that `count` keys reach, which is one of them.
    threshold = jax.lax.fori_loop(0, 32, settle, jnp.uint32(0))
    above = keys > threshold
    equal = (keys == threshold) & candidates
    room = count - jnp.sum(above, dtype=jnp.int32)
    first = jnp.cumsum(equal, dtype=jnp.int32) <= room
    return jnp.where(count > 0, above | (equal & first), False)


def indices(
    chosen: Bool[ArrayLike, " N"], count: int
) -> tuple[Int32[Array, " {count}"], Bool[Array, " {count}"]]:
    """Lists the first `count` chosen places in rising order.

    Args:
        chosen: which places to list.
        count: the length of the list.
    Returns:
        The places, and which entries of the list are real; others are place 0.
    """
    running = jnp.cumsum(chosen, dtype=jnp.int32)
    wanted = jnp.arange(1, count + 1, dtype=jnp.int32)
    place = jnp.searchsorted(running, wanted, side="left").astype(jnp.int32)
    real = wanted <= running[-1]
    return jnp.where(real, place, 0), real


def top(
    values: Float32[ArrayLike, " N"], candidates: Bool[ArrayLike, " N"], count: int
) -> tuple[Int32[Array, " {count}"], Bool[Array, " {count}"]]:
    """Lists the places of the `count` largest candidates, the largest first.

    Args:
        values: finite.
        candidates: which of them may be listed.
        count: the length of the list.
    Returns:
        The places, and which entries of the list are real; those come first.
    """
    place, real = indices(largest(values, candidates, jnp.int32(count)), count)
    return sorted_by(jnp.asarray(values)[place], place, real)


def sorted_by(
    values: Float32[ArrayLike, " N"],
    place: Int32[ArrayLike, " N"],
    real: Bool[ArrayLike, " N"],
) -> tuple[Int32[Array, " N"], Bool[Array, " N"]]:
    """Sorts a list by falling value, its real entries first, equal ones as they are."""
    keys = ~jnp.where(real, ordered_bits(values), jnp.uint32(0))
    _, place, real = jax.lax.sort((keys, place, real), num_keys=1, is_stable=True)
    return place, real
