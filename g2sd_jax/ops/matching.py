# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Assignment of boxes to objects by their overlap (Faster R-CNN, section 3.1.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int8, Int32

from g2sd_jax.ops import boxes as box_ops

BACKGROUND, IGNORED, FOREGROUND = 0, -1, 1


class Matches(NamedTuple):
    """For every box its object, and whether it stands for one."""

    label: Int8[Array, " N"]  # FOREGROUND, BACKGROUND, or IGNORED between them.
    index: Int32[Array, " N"]  # The object of largest overlap, the first of equal ones.
    overlap: Float32[Array, " N"]  # With that object; -1 where there is none.


def match(
    boxes: Float32[ArrayLike, "N 4"],
    objects: Float32[ArrayLike, "G 4"],
    valid: Bool[ArrayLike, " G"],
    *,
    low: float,
    high: float,
    low_quality: bool,
) -> Matches:
    """Matches the boxes of one picture with its objects.

    Goes through the objects one after another, so that the table of all pairs, 105 MB
    at 261,888 anchors and 100 objects, never exists.

    Args:
        boxes: anchors or proposals.
        objects: padded ground truth.
        valid: which of the objects are real; the others match nothing.
        low: overlap below which a box is background.
        high: overlap from which it is foreground.
        low_quality: whether the boxes of largest overlap with an object, all of equal
            ones, are foreground too, if they overlap it at all. They keep the object
            that they overlap most. The original has an object that overlaps nothing
            make every box that it does not overlap foreground; here it makes none.
    """
    count = boxes.shape[0]
    columns = jnp.asarray(boxes).T  # [4, N]

    def visit(state, item):
        best, index, attains = state
        row, (each, box, real) = jnp.zeros(count), item
        row = box_ops.overlap(columns, box[:, None])
        # Computed once: were the largest one and the comparison with it fused with
        # computations of their own, it might equal none of the others.
        row = jax.lax.optimization_barrier(jnp.where(real, row, -1.0))
        largest = row.max()
        attains |= (row == largest) & (largest > 0)
        better = row > best  # The first of equal ones stays.
        best, index = jnp.where(better, row, best), jnp.where(better, each, index)
        return (best, index, attains), None

    start = (
        jnp.full(count, -1.0, jnp.float32),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, bool),
    )
    numbers = jnp.arange(objects.shape[0], dtype=jnp.int32)
    items = (numbers, jnp.asarray(objects), jnp.asarray(valid))
    (best, index, attains), _ = jax.lax.scan(visit, start, items)
    label = jnp.where(best < low, BACKGROUND, IGNORED)
    foreground = best >= high
    if low_quality:
        foreground |= attains
    label = jnp.where(foreground, FOREGROUND, label)
    return Matches(label.astype(jnp.int8), index, best)
