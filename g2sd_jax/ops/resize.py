# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Bicubic resizing as matrix products: position tables, and crops on the device."""

import jax
import jax.numpy as jnp
import numpy as np


def cubic(distance, a):
    """Keys' kernel, of a numpy or jax array of distances in (stretched) pixels."""
    x = abs(distance)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return near * (x < 1) + far * ((x >= 1) & (x < 2))


def table_weights(size, new):
    """[new, size] weights of one axis: half-pixel centres, edge clamped, a = -0.75."""
    centre = (np.arange(new) + 0.5) * size / new - 0.5
    taps = np.floor(centre)[:, None] + np.arange(-1, 3)  # [new, 4]
    weights = cubic(taps - centre[:, None], a=-0.75)
    matrix = np.zeros((new, size))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    # A tap beyond the edge counts for the edge, so one column may get several.
    np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).astype(int)), weights)
    return jnp.asarray(matrix, jnp.float32)


def resize_bicubic(image, size):
    """PyTorch's bicubic interpolation: no antialias, corners not aligned.

    Args:
        image: [..., H, W, C] floats.
        size: static (height, width) wanted.
    """
    rows = table_weights(image.shape[-3], size[0])
    columns = table_weights(image.shape[-2], size[1])
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("hH,...HWC->...hWC", rows, image, precision=exact)
    return jnp.einsum("wW,...hWC->...hwC", columns, image, precision=exact)


def resize_pos_embed(table, from_grid, to_grid):
    """A position table of another image size; its class row is kept as it is.

    Args:
        table: [1, 1 + N, D], the class row first, then the grid row by row.
        from_grid: (rows, columns) of the N positions.
        to_grid: (rows, columns) wanted.
    """
    if tuple(from_grid) == tuple(to_grid):
        return table
    class_row, grid = table[:, :1], table[:, 1:]
    grid = resize_bicubic(grid.reshape(1, *from_grid, -1), to_grid)
    grid = grid.reshape(1, -1, table.shape[-1])
    return jnp.concatenate([class_row, grid], axis=1)


def crop_resize(image, boxes, size):
    """Cuts one box out of every image and resizes it as Pillow's BICUBIC does.

    The kernel (a = -0.5) is stretched where the box shrinks. As with Pillow's `box`,
    pixels just outside the box serve the kernel; nothing is rounded or clipped.

    Args:
        image: [B, H, W, C] float32.
        boxes: [B, 4] y, x, height, width in pixels.
        size: static (height, width) wanted.
    """
    y, x, height, width = jnp.moveaxis(boxes.astype(jnp.float32), 1, 0)
    rows = box_weights(y, height, image.shape[1], size[0])
    columns = box_weights(x, width, image.shape[2], size[1])
    # The default of accelerators, bfloat16 weights, would move pixels by a grey level.
    fine = jax.lax.Precision.HIGH
    image = jnp.einsum("bhH,bHWC->bhWC", rows, image, precision=fine)
    return jnp.einsum("bwW,bhWC->bhwC", columns, image, precision=fine)


def box_weights(start, extent, size, new):
    """[B, new, size] weights of one axis for boxes `start, extent` [B]."""
    scale = (extent / new)[:, None]
    centre = start[:, None] + (jnp.arange(new) + 0.5)[None] * scale  # [B, new]
    pixels = (jnp.arange(size) + 0.5)[None, None]
    distance = (pixels - centre[:, :, None]) / jnp.maximum(scale, 1.0)[:, :, None]
    weights = cubic(distance, a=-0.5)  # [B, new, size]
    return weights / weights.sum(axis=-1, keepdims=True)
