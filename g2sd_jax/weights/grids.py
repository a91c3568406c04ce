# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The grid of patches that a state dict's tables of positions were made for."""

import functools
import math
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from g2sd_jax.ops import patches, relative

TABLES = ("pos_embed", "decoder_pos_embed")
INDEX = "relative_position_index"
BIASES = "relative_position_bias_table"
HOW_TO_TELL = (
    "say it in the file: an entry g2sd_jax='{\"grid\": [rows, columns]}' in the "
    "metadata of a .safetensors or beside the state dict of a .pth"
)


def stated(
    arrays: Mapping[str, np.ndarray], describe: Mapping
) -> tuple[int, int] | None:
    """The (rows, columns) that a file tells, None if it does not.

    It tells them in its description, by an index of relative positions, or by a sin-cos
    table of positions, which is another one for every grid.
    """
    if describe.get("grid"):
        rows, columns = describe["grid"]
        return rows, columns
    for name, array in arrays.items():
        if name.endswith(INDEX):
            for grid in _factors(len(array) - 1):
                if np.array_equal(array, relative.index(grid)):
                    return grid
    for table in _tables(arrays):
        for grid in _factors(table.shape[1] - 1):
            if is_sincos(table, grid):
                return grid
    return None


def likely(
    arrays: Mapping[str, np.ndarray], describe: Mapping
) -> tuple[int, int] | None:
    """The grid that a file tells, or else the square that all its tables fit."""
    return stated(arrays, describe) or _square(arrays)


def _square(arrays: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    squares = set()
    classless = _is_classless(arrays)
    for table in _tables(arrays):
        fits = table.shape[1] - 1 if has_class_row(table) else 0
        fits = table.shape[1] if classless else fits
        squares.add(math.isqrt(fits) if math.isqrt(fits) ** 2 == fits else 0)
    for name, array in arrays.items():
        if name.endswith(BIASES):
            side = (math.isqrt(max(len(array) - relative.EXTRA, 0)) + 1) // 2
            squares.add(side if relative.rows((side, side)) == len(array) else 0)
    if len(squares) != 1 or 0 in squares:
        return None
    [side] = squares
    return side, side


def _is_classless(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is that of a whole encoder without class token."""
    return "cls_token" not in arrays and "patch_embed.proj.weight" in arrays


def is_sincos(table: np.ndarray, grid: tuple[int, int]) -> bool:
    """Whether a table [1, 1 + N, D] is the sin-cos one of a grid, however rounded."""
    width = table.shape[-1]
    if width % 4:
        return False
    expected = _sincos(width, grid)
    if table.shape != expected.shape:
        return False
    return np.allclose(table, expected, rtol=0, atol=_tolerance(table))


def has_class_row(table: np.ndarray) -> bool:
    """Whether the first row of a table [1, T, D] may be the class token's.

    It is not if all rows together are the sin-cos table of a grid of T patches.
    """
    if table.ndim != 3 or table.shape[-1] % 4 or not table[:, 0].any():
        return True
    padded = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    return not any(is_sincos(padded, grid) for grid in _factors(table.shape[1]))


@functools.lru_cache(maxsize=64)
def _sincos(width: int, grid: tuple[int, int]) -> np.ndarray:
    return patches.sincos_table(width, grid)


def _tolerance(table: np.ndarray) -> float:
    """Half a step of the coarsest type that the numbers up to 1 were rounded to."""
    for dtype, step in ((jnp.bfloat16, 2**-8), (np.float16, 2**-11)):
        if np.array_equal(table, table.astype(dtype).astype(table.dtype)):
            return step + 1e-4
    return 1e-4


def _factors(count: int) -> Iterator[tuple[int, int]]:
    """All (rows, columns) of `count` patches, the squarest first."""
    for side in range(math.isqrt(max(count, 0)), 0, -1):
        if count % side == 0:
            yield side, count // side
            if side * side != count:
                yield count // side, side


def _tables(arrays: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    for name, array in arrays.items():
        if name.rsplit(".", 1)[-1] in TABLES and array.ndim == 3 and array.shape[1] > 1:
            yield array
