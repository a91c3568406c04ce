# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Anchors of a region proposal network (Faster R-CNN, section 3.1)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32


def cell(size: float, ratios: Sequence[float]) -> Float32[np.ndarray, "ratios 4"]:
    """The anchors of one cell around 0, 0.

    Args:
        size: square root of their area, in pixels.
        ratios: height over width of each.
    """
    ratios = np.asarray(ratios, np.float64)
    width = np.sqrt(float(size) ** 2 / ratios)
    height = ratios * width
    corners = np.stack([-width, -height, width, height], axis=1) / 2
    return corners.astype(np.float32)


def level(
    grid: tuple[int, int], stride: int, size: float, ratios: Sequence[float]
) -> Float32[Array, "N 4"]:
    """The anchors of one feature map, ordered by row, column, ratio.

    Their centres are the top left corners of the cells, not the middles (detectron2's
    offset 0, which published weights were trained with).

    Args:
        grid: (rows, columns) of the map.
        stride: pixels from cell to cell.
        size: of `cell`.
        ratios: of `cell`.
    """
    rows, columns = (stride * jnp.arange(side, dtype=jnp.float32) for side in grid)
    y, x = jnp.meshgrid(rows, columns, indexing="ij")
    shift = jnp.stack([x, y, x, y], axis=-1)  # [h, w, 4]
    boxes = shift[:, :, None] + cell(size, ratios)[None, None]
    return boxes.reshape(-1, 4)


def levels(
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[float],
    ratios: Sequence[float],
) -> tuple[Float32[Array, "_ 4"], ...]:
    """The anchors of every feature map, finest first: one size a level."""
    settings = zip(grids, strides, sizes, strict=True)
    return tuple(level(*setting, ratios) for setting in settings)
