# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""ROIAlign as products with two matrices per box (Mask R-CNN, section 3).

A bin is the mean of bilinear samples on a regular grid inside of it. Where samples lie
and what they weigh is a matter of each axis alone, so a box is pooled by one matrix for
its rows and one for its columns: bins by cells, every entry a mean of linear weights.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32, Shaped

from g2sd_jax.ops import boxes as box_ops

CHUNK = 64  # Boxes pooled at once by the dense matrices.


def level_of(
    boxes: Float32[ArrayLike, "*shape 4"],
    *,
    canonical_size: float,
    canonical_level: int,
    lowest: int,
    highest: int,
) -> Int32[Array, "*shape"]:
    """Chooses the level of each box by its size (FPN, equation 1).

    Args:
        boxes: in pixels.
        canonical_size: side of the square that belongs to the canonical level.
        canonical_level: k0; level k has stride 2^k.
        lowest: finest level there is.
        highest: coarsest level there is.
    Returns:
        Levels counted from the lowest, which is 0.
    """
    side = jnp.sqrt(jnp.maximum(box_ops.area(boxes), 0.0))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size + 1e-8))
    return jnp.clip(level, lowest, highest).astype(jnp.int32) - lowest


def axis_weights(
    low: Float32[ArrayLike, "*shape"],
    high: Float32[ArrayLike, "*shape"],
    size: Shaped[ArrayLike, "*shape"],
    *,
    bins: int,
    samples: int,
    cells: int,
    offset: Int32[ArrayLike, "*shape"] | None = None,
) -> Float32[Array, "*shape {bins} {cells}"]:
    """The matrix of one axis: what every cell of a map adds to every bin of a box.

    A sample counts for nothing outside of -1..size, for the first or the last cell
    beyond their middles, and elsewhere for the two cells that it lies between.

    Args:
        low: where the boxes begin, in cells; the middle of the first cell is 0.
        high: where they end.
        size: cells of the map that each box is pooled from.
        bins: into which a box is divided.
        samples: in a bin; 0 takes one for each cell that a bin covers, rounded up, as
            published, without a limit.
        cells: how many of the map's the matrix has.
        offset: the map's cell that is the matrix's first; None: the first one.
    """
    low, high = (jnp.asarray(x, jnp.float32)[..., None, None] for x in (low, high))
    size = jnp.asarray(size, jnp.float32)[..., None, None]
    width = (high - low) / bins
    first = low + width * jnp.arange(bins, dtype=jnp.float32).reshape(
        (1,) * (low.ndim - 2) + (bins, 1)
    )
    cell = jnp.arange(cells, dtype=jnp.float32).reshape((1,) * (low.ndim - 1) + (-1,))
    if offset is not None:
        cell = cell + jnp.asarray(offset, jnp.float32)[..., None, None]
    rule = _fixed_samples if samples else _adaptive_samples
    weights = rule(first, width, cell, size, samples)
    # Cells that lie beyond the map, as some of a window do.
    return jnp.where((cell >= 0) & (cell < size), weights, 0.0)


def _fixed_samples(first, width, cell, size, samples):
    """Adds the samples of each bin one after another."""
    total = jnp.zeros(jnp.broadcast_shapes(first.shape, cell.shape), jnp.float32)
    for i in range(samples):
        place = first + (i + 0.5) * width / samples
        inside = (place >= -1) & (place <= size)
        place = jnp.clip(place, 0.0, size - 1)
        total += jnp.where(inside, jnp.maximum(1 - jnp.abs(place - cell), 0.0), 0.0)
    return total / samples


def _adaptive_samples(first, width, cell, size, _):
    """Sums all samples of each bin at once, however many there are.

    They are an arithmetic progression, and the weight of a cell is linear between
    neighbouring cells: the number of samples there and their mean are enough.
    """
    count = jnp.maximum(jnp.ceil(width), 0.0)
    step = width / jnp.maximum(count, 1.0)

    def place(number):
        return first + (number + 0.5) * step

    def before(bound):
        """Counts the samples before a bound."""
        number = jnp.ceil((bound - first) / jnp.where(step > 0, step, 1.0) - 0.5)
        # Rounding may put it one off; where samples are computed to be decides.
        number = number - (place(number - 1) >= bound)
        number = number + (place(number) < bound)
        return jnp.clip(number, 0.0, count)

    def mean_distance(start, end):
        """From the cell to the samples number start to end - 1."""
        return place((start + end - 1) / 2) - cell

    below, here, above = (before(cell + shift) for shift in (-1.0, 0.0, 1.0))
    up_to_size = before(jnp.nextafter(size, jnp.inf))
    rising = (here - below) * (1 + mean_distance(below, here))
    falling = (above - here) * (1 - mean_distance(here, above))
    rising = jnp.where(cell == 0, here - below, rising)
    falling = jnp.where(cell == size - 1, up_to_size - here, falling)
    return (rising + falling) / jnp.maximum(count, 1.0)


def pool(
    maps: Sequence[Float[ArrayLike, "B _ _ D"]],
    boxes: Float32[ArrayLike, "B R 4"],
    level: Int32[ArrayLike, "B R"],
    strides: Sequence[int],
    *,
    bins: int,
    samples: int = 0,
    chunk: int = CHUNK,
) -> Float[Array, "B R {bins} {bins} D"]:
    """Pools each box from the feature map of its level, exactly.

    Multiplies every map with the matrices of all boxes, which are 0 for boxes of other
    levels. No gradient reaches the boxes.

    Args:
        maps: finest first.
        boxes: of every picture, in pixels.
        level: which of the maps each box is pooled from, counted from 0.
        strides: pixels from cell to cell of each map.
        bins: rows and columns of the result.
        samples: of `axis_weights`.
        chunk: boxes at once.
    """
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes))

    def some(boxes, level):
        total = 0.0
        for number, (x, stride) in enumerate(zip(maps, strides, strict=True)):
            rows, columns = matrices(boxes, x.shape[1:3], stride, bins, samples)
            here = (level == number)[..., None, None]
            rows = jnp.where(here, rows, 0.0)
            total = total + apply(rows, columns, x)
        return total

    return _in_chunks(some, boxes, level, chunk).astype(maps[0].dtype)


def pool_each(
    maps: Sequence[Float[ArrayLike, "B _ _ D"]],
    boxes: Float32[ArrayLike, "B R 4"],
    level: Int32[ArrayLike, "B R"],
    strides: Sequence[int],
    *,
    bins: Sequence[int],
    counts: Sequence[int],
    samples: int = 0,
) -> tuple[Float[Array, "B _ _ _ D"], ...]:
    """Pools the first counts[i] boxes to bins[i] x bins[i], as `pool` does."""
    return tuple(
        pool(maps, boxes[:, :n], level[:, :n], strides, bins=size, samples=samples)
        for size, n in zip(bins, counts, strict=True)
    )


def matrices(
    boxes: Float32[ArrayLike, "B R 4"],
    grid: tuple[int, int],
    stride: int,
    bins: int,
    samples: int,
) -> tuple[Float32[Array, "B R {bins} h"], Float32[Array, "B R {bins} w"]]:
    """The matrices of all boxes for the rows and the columns of one map.

    Args:
        boxes: in pixels.
        grid: (rows, columns) of the map.
        stride: pixels from cell to cell.
        bins: of `axis_weights`.
        samples: of `axis_weights`.
    """
    x1, y1, x2, y2 = (boxes[..., i] * (1 / stride) - 0.5 for i in range(4))
    axes = zip(((y1, y2), (x1, x2)), grid, strict=True)
    rows, columns = (
        axis_weights(
            low,
            high,
            jnp.full(low.shape, size),
            bins=bins,
            samples=samples,
            cells=size,
        )
        for (low, high), size in axes
    )
    return rows, columns


def apply(
    rows: Float32[ArrayLike, "B R p h"],
    columns: Float32[ArrayLike, "B R q w"],
    x: Float[ArrayLike, "B h w D"],
) -> Float32[Array, "B R p q D"]:
    """Multiplies maps with the matrices of boxes."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    options = dict(precision=exact, preferred_element_type=jnp.float32)
    strips = jnp.einsum("brph,bhwd->brpwd", rows.astype(x.dtype), x, **options)
    strips = strips.astype(x.dtype)  # The largest array of all.
    return jnp.einsum("brqw,brpwd->brpqd", columns.astype(x.dtype), strips, **options)


def _in_chunks(function, boxes, level, chunk):
    """Applies a function to some boxes at a time; the backward pass does so anew."""
    count = boxes.shape[1]
    if count <= chunk:
        return function(boxes, level)
    parts = -(-count // chunk)
    short = parts * chunk - count
    # Boxes of no extent, which nothing is pooled for.
    boxes = jnp.pad(boxes, ((0, 0), (0, short), (0, 0)))
    level = jnp.pad(level, ((0, 0), (0, short)))
    split = lambda x: jnp.moveaxis(
        x.reshape(x.shape[0], parts, chunk, *x.shape[2:]), 1, 0
    )
    step = jax.checkpoint(lambda item: function(*item))
    pooled = jax.lax.map(step, (split(boxes), split(level)))
    pooled = jnp.moveaxis(pooled, 0, 1)
    return pooled.reshape(pooled.shape[0], -1, *pooled.shape[3:])[:, :count]
