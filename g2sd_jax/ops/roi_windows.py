# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""ROIAlign of one window of cells per box: `roi_align.pool` at a fiftieth of its work.

All maps lie in one atlas, out of which every box takes a window of fixed size on its
level. A box that its level was chosen for is 14 to 28 cells long if it is a square; one
that is longer than the window is pooled from its middle part alone, and counted.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int32

from g2sd_jax.ops import roi_align

SIDE = 40  # Cells; of the boxes of COCO 94 % are no longer than 38 on their level.
CHUNK = 32  # Boxes at once.


class Places(NamedTuple):
    """Where the maps lie in the atlas."""

    grids: tuple[tuple[int, int], ...]  # (rows, columns) of each map
    corners: tuple[tuple[int, int], ...]  # (row, column) of their first cells
    size: tuple[int, int]  # of the atlas


class Windows(NamedTuple):
    """The window of every box."""

    start: Int32[Array, "B R 2"]  # Its first row and column in the atlas.
    rows: Float32[Array, "B R bins side"]  # Of `roi_align.axis_weights`.
    columns: Float32[Array, "B R bins side"]
    leaves: Bool[Array, "B R"]  # Whether the box is longer.


def places(grids: Sequence[tuple[int, int]]) -> Places:
    """Lays maps out: the finest at the left, the others at its right in a column.

    Args:
        grids: (rows, columns) of each map, finest first.
    """
    corners, top, right = [(0, 0)], 0, grids[0][1]
    for rows, _ in grids[1:]:
        corners.append((top, right))
        top += rows
    # With room for a whole window wherever a map begins.
    size = tuple(
        max(
            corner[axis] + max(grid[axis], SIDE)
            for corner, grid in zip(corners, grids, strict=True)
        )
        for axis in (0, 1)
    )
    return Places(tuple(map(tuple, grids)), tuple(corners), size)


def pool_each(
    maps: Sequence[Float[ArrayLike, "B _ _ D"]],
    boxes: Float32[ArrayLike, "B R 4"],
    level: Int32[ArrayLike, "B R"],
    strides: Sequence[int],
    *,
    bins: Sequence[int],
    counts: Sequence[int],
    samples: int = 0,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B _ _ _ D"], ...]:
    """Pools each box from a window of the map of its level, to one or several sizes.

    Equals `roi_align.pool_each` for boxes that do not leave their window, each of which
    is read once, and written once by the gradient, which is summed in the maps' dtype.

    Args:
        maps: of `roi_align.pool`, like all but the next two.
        bins: rows and columns of each result.
        counts: how many boxes, from the first, each result has: all of them in the
            first result, and no more in any than in the one before it.
    Returns:
        For every size [B, count, bins, bins, D].
    """
    if counts[0] != boxes.shape[1] or list(counts) != sorted(counts, reverse=True):
        raise ValueError(f"counts={counts} of {boxes.shape[1]} boxes: the most first")
    plan = places([x.shape[1:3] for x in maps])
    chunk = min(chunk, boxes.shape[1])
    pad = lambda x: jnp.pad(
        x, ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2))
    )
    windows = [
        look(
            boxes[:, :count],
            level[:, :count],
            plan.grids,
            strides,
            bins=size,
            samples=samples,
        )
        for size, count in zip(bins, counts, strict=True)
    ]
    weights = tuple((pad(each.rows), pad(each.columns)) for each in windows)
    pooled = _pool(plan, chunk, tuple(maps), pad(windows[0].start), weights)
    return tuple(x[:, :count] for x, count in zip(pooled, counts, strict=True))


def look(
    boxes: Float32[ArrayLike, "B R 4"],
    level: Int32[ArrayLike, "B R"],
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    bins: int,
    samples: int = 0,
) -> Windows:
    """Chooses the window of each box, and its matrices there.

    Args:
        boxes: in pixels.
        level: the map of each box, counted from 0.
        grids: (rows, columns) of each map.
        strides: pixels from cell to cell of each map.
        bins: of `roi_align.axis_weights`.
        samples: of `roi_align.axis_weights`.
    """
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes))
    plan = places(grids)
    of_level = lambda values: jnp.asarray(values)[level]
    scale = of_level([1 / stride for stride in strides])
    starts, weights, leaves = [], [], False
    for axis in (0, 1):
        low, high = (boxes[..., i] * scale - 0.5 for i in (1 - axis, 3 - axis))
        size = of_level([grid[axis] for grid in plan.grids])
        first, last = (
            jnp.floor(jnp.clip(x, 0.0, size - 1.0)).astype(jnp.int32)
            for x in (low, high)
        )
        last = jnp.minimum(last + 1, size - 1)
        longer = last - first >= SIDE
        offset = jnp.where(longer, (first + last - SIDE) // 2, first)
        offset = jnp.clip(offset, 0, jnp.maximum(size - SIDE, 0))
        weights.append(
            roi_align.axis_weights(
                low,
                high,
                size,
                bins=bins,
                samples=samples,
                cells=SIDE,
                offset=offset,
            )
        )
        starts.append(offset + of_level([corner[axis] for corner in plan.corners]))
        leaves |= longer
    return Windows(jnp.stack(starts, axis=-1), *weights, leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(plan, chunk, maps, start, weights):
    atlas = _atlas(plan, maps)

    def some(item):
        start, weights = item
        cut = lambda x, at: jax.lax.dynamic_slice(
            x, (*at, 0), (SIDE, SIDE, x.shape[-1])
        )
        windows = jax.vmap(jax.vmap(cut, (None, 0)))(atlas, start)
        return [
            _multiply("brph,brhwd->brpwd", "brqw,brpwd->brpqd", *pair, windows)
            for pair in weights
        ]

    parts = [[] for _ in weights]
    for items in _spans(chunk, start, weights):
        for part, pooled in zip(parts, jax.lax.map(some, items), strict=False):
            part.append(_join(pooled))
    return tuple(jnp.concatenate(part, axis=1) for part in parts)


def _forward(plan, chunk, maps, start, weights):
    # Of the maps the backward pass needs only their types.
    types = tuple(x[:0] for x in maps)
    return _pool(plan, chunk, maps, start, weights), (types, start, weights)


def _backward(plan, chunk, residuals, gradients):
    types, start, weights = residuals
    batch, width = gradients[0].shape[0], gradients[0].shape[-1]
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(0, 1),
    )

    def add(atlas, item):
        start, weights = item
        windows = sum(
            _multiply("brph,brpqd->brhqd", "brqw,brhqd->brhwd", *each)
            for each in weights
        )
        spread = lambda x, at, window: jax.lax.scatter_add(x, at, window, dimensions)
        # In place, where a sum with a zero atlas would go over all of it every time.
        return jax.vmap(spread)(atlas, start, windows.astype(atlas.dtype)), None

    atlas = jnp.zeros((batch, *plan.size, width), types[0].dtype)
    with_gradients = tuple(
        (*pair, g) for pair, g in zip(weights, gradients, strict=True)
    )
    for items in _spans(chunk, start, with_gradients):
        atlas, _ = jax.lax.scan(add, atlas, items)
    maps = tuple(
        atlas[:, row : row + height, column : column + breadth]
        for (row, column), (height, breadth) in zip(
            plan.corners, plan.grids, strict=True
        )
    )
    return maps, None, jax.tree.map(jnp.zeros_like, weights)


_pool.defvjp(_forward, _backward)


def _spans(chunk, start, arrays):
    """Chunks of (start, arrays of each size) where the boxes have the same sizes.

    Of every size there are at least as many boxes as of the next.
    """
    counts = [size[0].shape[1] for size in arrays]
    for bounds in itertools.pairwise([0, *sorted(set(counts))]):
        cut = functools.partial(_split, run=slice(*bounds), chunk=chunk)
        sizes = sum(count >= bounds[1] for count in counts)
        yield jax.tree.map(cut, (start, list(arrays[:sizes])))


def _atlas(plan, maps):
    """[B, *plan.size, D] of all maps."""
    atlas = jnp.zeros((maps[0].shape[0], *plan.size, maps[0].shape[-1]), maps[0].dtype)
    for x, (row, column) in zip(maps, plan.corners, strict=True):
        atlas = jax.lax.dynamic_update_slice(atlas, x, (0, row, column, 0))
    return atlas


def _multiply(first, second, rows, columns, x):
    """Two products in the dtype of x, accumulated in float32."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    options = dict(precision=exact, preferred_element_type=jnp.float32)
    strips = jnp.einsum(first, rows.astype(x.dtype), x, **options).astype(x.dtype)
    return jnp.einsum(second, columns.astype(x.dtype), strips, **options).astype(
        x.dtype
    )


def _split(x, run, chunk):
    """[B, R, ...] -> [n, B, chunk, ...] of a run of the R."""
    x = x[:, run]
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _join(x):
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
