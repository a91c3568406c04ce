# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Windows of a token grid, and relative positions by rows and columns (ViTDet).

The bias between two tokens is the query's product with one entry of a table for their
distance in rows, plus that with one for their distance in columns (MViTv2, equation 3).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Integer

from g2sd_jax.ops import resize

# Queries at once. A table of all 4096 x 4096 pairs is 67 MB a head; compiled for v5e,
# both passes of [1, 64, 64, 6, 64] in bfloat16 took 456 MB of temporaries with 1024.
ROWS = 256


def partition(
    x: Float[ArrayLike, "B h w D"], side: int
) -> Float[Array, "n {side} {side} D"]:
    """Cuts grids into windows, padded with zeros at the bottom and at the right.

    Args:
        x: token grids.
        side: of the windows, in tokens.
    Returns:
        The windows of one grid after those of another, row by row.
    """
    batch, height, width, channels = x.shape
    rows, columns = padded_sides((height, width), side)
    x = jnp.pad(x, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
    x = x.reshape(batch, rows // side, side, columns // side, side, channels)
    return x.swapaxes(2, 3).reshape(-1, side, side, channels)


def merge(
    x: Float[ArrayLike, "n S S D"], grid: tuple[int, int]
) -> Float[Array, "B {grid[0]} {grid[1]} D"]:
    """Joins windows to the grids they were cut from, without what was padded."""
    side, channels = x.shape[2:]
    rows, columns = padded_sides(grid, side)
    x = x.reshape(-1, rows // side, columns // side, side, side, channels)
    x = x.swapaxes(2, 3).reshape(-1, rows, columns, channels)
    return x[:, : grid[0], : grid[1]]


def padded_sides(grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Rounds the sides of a grid up to multiples of a window's."""
    return tuple(-(-length // side) * side for length in grid)


def distances(queries: int, keys: int) -> Integer[np.ndarray, "{queries} {keys}"]:
    """The table's entry for each query and key along one axis.

    With unequal numbers the shorter axis is stretched to the longer one.
    """
    query = np.arange(queries)[:, None] * max(keys / queries, 1.0)
    key = np.arange(keys)[None] * max(queries / keys, 1.0)
    return (query - key + (keys - 1) * max(queries / keys, 1.0)).astype(np.int64)


def positions(
    table: Float[ArrayLike, "length d"], queries: int, keys: int
) -> Float32[Array, "{queries} {keys} d"]:
    """Looks up the entries of a table for all queries and keys along one axis.

    Args:
        table: one entry a distance; of another length than the 2 n - 1 that n tokens
            need it is interpolated linearly first.
        queries: their number.
        keys: their number.
    """
    table, length = jnp.asarray(table, jnp.float32), 2 * max(queries, keys) - 1
    if len(table) != length:
        weights = jnp.asarray(resize.linear_weights(len(table), length), jnp.float32)
        table = jnp.matmul(weights, table, precision=jax.lax.Precision.HIGHEST)
    return table[distances(queries, keys)]


def attention(
    q: Float[ArrayLike, "B H W h d"],
    k: Float[ArrayLike, "B H W h d"],
    v: Float[ArrayLike, "B H W h d"],
    rows: Float[ArrayLike, "_ d"],
    columns: Float[ArrayLike, "_ d"],
    most: int = ROWS,
) -> Float[Array, "B H W h d"]:
    """softmax(q k^T / sqrt(d) + q rows + q columns) v over all tokens of a grid.

    The positions are multiplied with queries that are not scaled. The softmax is
    float32, and the backward pass computes it anew. Where there are more queries than
    `most`, they are taken some rows of the grid at a time, so that no map of all pairs
    of tokens exists.

    Args:
        q: queries.
        k: keys.
        v: values.
        rows: table of distances in rows, as in `positions`.
        columns: the same for columns.
        most: queries at once.
    """
    batch, height, width, heads, channels = q.shape
    scaled = (q * channels**-0.5).astype(q.dtype)
    # [B, rows of the grid, h, columns, d]: queries whose rows can be cut apart.
    queries = jnp.stack([scaled, q]).transpose(0, 1, 2, 4, 3, 5)
    keys, values = (
        x.reshape(batch, height * width, heads, channels).swapaxes(1, 2) for x in (k, v)
    )
    down = positions(rows, height, height).astype(q.dtype)  # [H, H', d]
    across = positions(columns, width, width).astype(q.dtype)  # [W, W', d]
    part = jax.checkpoint(
        functools.partial(_attend, keys=keys, values=values, across=across)
    )
    together = max(1, most // width)
    if height <= together:
        out = part(queries, down)
    else:
        while height % together:
            together -= 1
        parts = height // together
        shape = (2, batch, parts, together, *queries.shape[3:])
        queries = jnp.moveaxis(queries.reshape(shape), 2, 0)
        down = down.reshape(parts, together, *down.shape[1:])
        out = jax.lax.map(lambda each: part(*each), (queries, down))
        out = jnp.moveaxis(out, 0, 1).reshape(batch, height, *out.shape[3:])
    return out.swapaxes(2, 3)  # [B, H, W, h, d]


def _attend(queries, down, keys, values, across):
    """[B, some rows, h, W, d] of the grid: all that their queries see."""
    scaled, unscaled = queries
    shape = (len(down), across.shape[1])  # Rows of these queries; columns of keys.
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    logits = product("brhwd,bhkd->brhwk", scaled, keys)
    by_row = product("brhwd,rid->brhwi", unscaled, down)
    by_column = product("brhwd,wjd->brhwj", unscaled, across)
    logits = logits.reshape(*logits.shape[:-1], -1, shape[1])
    logits = logits + by_row[..., :, None] + by_column[..., None, :]
    weights = jax.nn.softmax(logits.reshape(*logits.shape[:-2], -1), axis=-1)
    weights = weights.astype(values.dtype)
    return product("brhwk,bhkd->brhwd", weights, values).astype(values.dtype)
