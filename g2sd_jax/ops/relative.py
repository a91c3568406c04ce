# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Relative position bias of a patch grid with a class token (after BEiT).

A table has one row for every offset between two patches, row offsets slowest, and three
more: class token to patch, patch to class token, class token to itself.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int64

EXTRA = 3  # Rows of a table that involve the class token.


def rows(grid: tuple[int, int]) -> int:
    """Counts the rows of the table of a grid (rows, columns)."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + EXTRA


def index(grid: tuple[int, int]) -> Int64[np.ndarray, "T T"]:
    """Returns the table's row for each query (first axis) and key."""
    places = np.stack(np.mgrid[: grid[0], : grid[1]]).reshape(2, -1)  # [2, N]
    apart = places[:, :, None] - places[:, None, :]  # Query minus key.
    across = 2 * grid[1] - 1
    patches = (apart[0] + grid[0] - 1) * across + apart[1] + grid[1] - 1
    result = np.full((1 + patches.shape[0],) * 2, rows(grid) - 1, np.int64)
    result[0, 1:], result[1:, 0] = rows(grid) - 3, rows(grid) - 2
    result[1:, 1:] = patches
    return result


def bias(
    table: Float[ArrayLike, "rows h"], grid: tuple[int, int]
) -> Float[ArrayLike, "h T T"]:
    """Computes `table[index(grid)]`, heads first, without a gather.

    A gather of (1 + N)^2 rows, and the scattered sum that is its gradient, are slow on
    accelerators; here every step is a reshape or a slice.

    Args:
        table: one row per offset, one column per head.
        grid: (rows, columns) of patches.
    Returns:
        The bias of every head, query by key.
    """
    heads, count = table.shape[-1], grid[0] * grid[1]
    offsets, (to_patch, to_class, to_itself) = table[:-EXTRA].T, table[-EXTRA:]
    offsets = offsets.reshape(heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
    apart = toeplitz(toeplitz(offsets).transpose(0, 2, 3, 1))  # [h, x, x', y, y']
    patches = apart.transpose(0, 3, 1, 4, 2).reshape(heads, count, count)
    column = jnp.broadcast_to(to_class[:, None, None], (heads, count, 1))
    row = jnp.broadcast_to(to_patch[:, None, None], (heads, 1, count))
    first = jnp.concatenate([to_itself[:, None, None], row], axis=2)
    rest = jnp.concatenate([column, patches], axis=2)
    return jnp.concatenate([first, rest], axis=1)


def toeplitz(x: Float[ArrayLike, "*shape length"]) -> Float[ArrayLike, "*shape n n"]:
    """Expands [..., 2n - 1] to [..., n, n]: entry (i, j) is x[i - j + n - 1].

    Copies of the reversed x, one longer by padding, shift by one when cut into rows of
    its own length (the "skew" of the Music Transformer).
    """
    length = x.shape[-1]
    n = (length + 1) // 2
    padded = jnp.pad(x[..., ::-1], [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    copies = jnp.broadcast_to(padded[..., None, :], (*x.shape[:-1], n, length + 1))
    flat = copies.reshape(*x.shape[:-1], n * (length + 1))[..., : n * length]
    return flat.reshape(*x.shape[:-1], n, length)[..., n - 1 :]
