# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Resizing of relative position tables to another grid (as BEiT does)."""

import numpy as np
from scipy import interpolate

from g2sd_jax.ops import relative


def coordinates(size: int, new: int) -> np.ndarray:
    """Places the offsets of `size` patches among those of `new`: [2 size - 1].

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
    """Resizes a table [rows, h]; the rows of the class token stay as they are.

    A bicubic spline through every head's offsets is read at whole offsets of the new
    grid; outside of the old ones it has the value of the edge.
    """
    if tuple(from_grid) == tuple(to_grid):
        return table
    offsets, classes = table[: -relative.EXTRA], table[-relative.EXTRA :]
    sides = [2 * side - 1 for side in from_grid]
    knots = [coordinates(old, new) for old, new in zip(from_grid, to_grid, strict=True)]
    targets = [np.arange(1 - side, side) for side in to_grid]
    heads = []
    for head in offsets.T.astype(np.float64):
        # Three offsets, those of a grid two patches wide, only carry a parabola.
        degrees = [min(3, side - 1) for side in sides]
        spline = interpolate.RectBivariateSpline(
            knots[0],
            knots[1],
            head.reshape(sides),
            kx=degrees[0],
            ky=degrees[1],
            s=0,
        )
        heads.append(spline(targets[0], targets[1]).ravel())
    offsets = np.stack(heads, axis=1).astype(np.float32)
    return np.concatenate([offsets, classes.astype(np.float32)])
