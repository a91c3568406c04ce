# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes x1 y1 x2 y2 in pixels, continuous: the first pixel alone is 0, 0, 1, 1.

All of it is float32, whatever dtype a model computes in: in bfloat16 a coordinate of
1,000 is off by up to 4 pixels.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Shaped

LARGEST_LOG = math.log(1000 / 16)  # Of a decoded side over its source's.


def sides(
    boxes: Float32[ArrayLike, "*shape 4"],
) -> tuple[Float32[ArrayLike, "*shape"], Float32[ArrayLike, "*shape"]]:
    """Returns widths and heights; negative ones of boxes that are inside out."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def area(boxes: Float32[ArrayLike, "*shape 4"]) -> Float32[ArrayLike, "*shape"]:
    """Returns width times height in square pixels."""
    width, height = sides(boxes)
    return width * height


def iou(
    boxes: Float32[ArrayLike, "*shape N 4"], others: Float32[ArrayLike, "*shape R 4"]
) -> Float32[Array, "*shape N R"]:
    """Intersection over union of every box with every other one."""
    columns = jnp.moveaxis(boxes, -1, 0)[..., :, None]  # [4, ..., N, 1]
    rows = jnp.moveaxis(others, -1, 0)[..., None, :]  # [4, ..., 1, R]
    return overlap(columns, rows)


def overlap(
    boxes: Float32[ArrayLike, "4 ..."], others: Float32[ArrayLike, "4 ..."]
) -> Float32[Array, "..."]:
    """Intersection over union, elementwise; coordinates first, for broadcasting."""
    x1, y1, x2, y2 = boxes
    left, top, right, bottom = others
    width = jnp.maximum(jnp.minimum(x2, right) - jnp.maximum(x1, left), 0.0)
    height = jnp.maximum(jnp.minimum(y2, bottom) - jnp.maximum(y1, top), 0.0)
    common = width * height
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - common
    return jnp.where(common > 0, common / jnp.where(common > 0, union, 1.0), 0.0)


def encode(
    source: Float32[ArrayLike, "... 4"],
    target: Float32[ArrayLike, "... 4"],
    weights: Sequence[float],
) -> Float32[Array, "... 4"]:
    """Encodes targets as deltas of the sources (R-CNN, appendix C).

    Args:
        source: anchors or proposals; none may be empty.
        target: none may be empty.
        weights: factors of dx, dy, dw, dh.
    Returns:
        Shifts of the centres in sides of the source, and logarithms of the ratios of
        the sides, times the weights.
    """
    x, y, width, height = _centred(source)
    target_x, target_y, target_width, target_height = _centred(target)
    deltas = (
        (target_x - x) / width,
        (target_y - y) / height,
        jnp.log(target_width / width),
        jnp.log(target_height / height),
    )
    return jnp.stack(
        [factor * delta for factor, delta in zip(weights, deltas, strict=True)],
        axis=-1,
    )


def decode(
    source: Float32[ArrayLike, "... 4"],
    deltas: Float32[ArrayLike, "... 4"],
    weights: Sequence[float],
) -> Float32[Array, "... 4"]:
    """Applies deltas to their sources; the inverse of `encode`.

    Sides grow to 1000 / 16 of their source's at most.
    """
    x, y, width, height = _centred(source)
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x, y = x + dx * width, y + dy * height
    width = width * jnp.exp(jnp.minimum(dw, LARGEST_LOG))
    height = height * jnp.exp(jnp.minimum(dh, LARGEST_LOG))
    half_width, half_height = 0.5 * width, 0.5 * height
    corners = (x - half_width, y - half_height, x + half_width, y + half_height)
    return jnp.stack(corners, axis=-1)


def clip(
    boxes: Float32[ArrayLike, "*shape 4"], size: Shaped[ArrayLike, "... 2"]
) -> Float32[Array, "*shape 4"]:
    """Clips boxes to pictures.

    Args:
        boxes: of pictures that are the first axes.
        size: height and width of each picture, as many axes as it takes.
    """
    size = jnp.asarray(size, jnp.float32)
    extent = jnp.concatenate([size[..., ::-1]] * 2, axis=-1)  # Width, height, twice.
    extent = extent.reshape(*size.shape[:-1], *(1,) * (boxes.ndim - size.ndim), 4)
    return jnp.clip(boxes, 0.0, extent)


def nonempty(boxes: Float32[ArrayLike, "*shape 4"]) -> Bool[ArrayLike, "*shape"]:
    """Whether boxes have a width and a height."""
    width, height = sides(boxes)
    return (width > 0) & (height > 0)


def _centred(boxes):
    """x, y of the centre, width, height."""
    width, height = sides(boxes)
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height
