# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Relative position tables of another grid (segmentation spec, section 2.1; BEiT)."""

import numpy as np
from scipy import interpolate

from g2sd_jax.ops import relative


def coordinates(size: int, new: int) -> np.ndarray:
    """[2 size - 1] where the offsets of `size` patches lie among those of `new`.

    Steps grow geometrically from 1, by a factor that bisection chooses in [1.01, 1.5]
    so that the ends meet; when shrinking, or growing by much from few, they do not.
    """
    if size == new:
        return np.arange(1.0 - size, size)
    low, high, steps = 1.01, 1.5, size - 1
    factor = high
    while high - low > 1e-6:
        factor = (low + high) / 2
        reach = (1 - factor**steps) / (1 - factor)
        low, high = (low, factor) if reach > new - 1 else (factor, high)
    outward = np.cumsum(factor ** np.arange(steps))
    return np.concatenate([-outward[::-1], [0.0], outward])


def resize(
    table: np.ndarray, from_grid: tuple[int, int], to_grid: tuple[int, int]
) -> np.ndarray:
    """A table [rows, h] for another grid; what involves the class token is kept.

    A bicubic spline through every head's offsets, read at whole offsets of the new
    grid; outside of the old ones, the value of the edge.
    """
    if tuple(from_grid) == tuple(to_grid):
        return table
    offsets, classes = table[: -relative.EXTRA], table[-relative.EXTRA :]
    sides = [2 * side - 1 for side in from_grid]
    known = [coordinates(old, new) for old, new in zip(from_grid, to_grid, strict=True)]
    wanted = [np.arange(1 - side, side) for side in to_grid]
    heads = []
    for head in offsets.T.astype(np.float64):
        # Three offsets, those of a grid two patches wide, only carry a parabola.
        degrees = [min(3, side - 1) for side in sides]
        spline = interpolate.RectBivariateSpline(
            *known, head.reshape(sides), kx=degrees[0], ky=degrees[1], s=0
        )
        heads.append(spline(*wanted).ravel())
    offsets = np.stack(heads, axis=1).astype(np.float32)
    return np.concatenate([offsets, classes.astype(np.float32)])
