# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of instances: from their frames to boxes, and from boxes to pictures.

A mask is M x M samples that fill a frame, a box in the picture: as a rule the clipped
box of the instance itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Integer, UInt8

from g2sd_jax.ops import roi_align

# Where bins are a whole number of samples, a half is common, and rounding no reason.
HALF = 0.5 - 1e-5


def targets(
    masks: UInt8[ArrayLike, "G M _"],
    frames: Float32[ArrayLike, "G 4"],
    boxes: Float32[ArrayLike, "R 4"],
    index: Integer[ArrayLike, " R"],
    side: int,
) -> Bool[Array, "R {side} {side}"]:
    """Cuts the masks of instances out where boxes are, resized.

    The mean of a mask over each of `side` x `side` bins, with the samples of ROIAlign,
    is at least a half.

    Args:
        masks: 0 or 1, of every instance.
        frames: that the masks fill, in pixels.
        boxes: to cut out, in pixels.
        index: the instance of each box.
        side: rows and columns of the result.
    """
    frame = jnp.asarray(frames)[index]  # [R, 4]
    rows, columns = (
        _cut_weights(
            boxes[:, axis],
            boxes[:, axis + 2],
            frame[:, axis],
            frame[:, axis + 2],
            masks.shape[2 - axis],
            side,
        )
        for axis in (1, 0)
    )
    chosen = jnp.asarray(masks)[index].astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    share = jnp.einsum("rph,rhw->rpw", rows, chosen, precision=exact)
    share = jnp.einsum("rqw,rpw->rpq", columns, share, precision=exact)
    return share >= HALF


def _cut_weights(low, high, start, end, size, side):
    """What every sample of a mask adds to every bin of a box, along one axis."""
    scale = size / jnp.where(end > start, end - start, 1.0)
    low, high = ((x - start) * scale - 0.5 for x in (low, high))
    return roi_align.axis_weights(
        low, high, jnp.full(low.shape, size), bins=side, samples=0, cells=size
    )


def paste(
    probabilities: Float[np.ndarray, "R side side"],
    boxes: Float[np.ndarray, "R 4"],
    size: tuple[int, int],
) -> Float32[np.ndarray, "R {size[0]} {size[1]}"]:
    """Stretches masks over their boxes in a picture, bilinearly; on the host.

    Args:
        probabilities: of each pixel of the boxes.
        boxes: in pixels of the picture.
        size: (height, width) of the picture.
    Returns:
        The probability at the middle of every pixel, 0 outside of the boxes.
    """
    side = probabilities.shape[-1]
    x1, y1, x2, y2 = np.asarray(boxes, np.float32).T
    rows = _spread(y1, y2, size[0], side)  # [R, H, side]
    columns = _spread(x1, x2, size[1], side)
    pasted = rows @ np.asarray(probabilities, np.float32)
    return pasted @ columns.swapaxes(1, 2)


def _spread(
    low: Float32[np.ndarray, " R"],
    high: Float32[np.ndarray, " R"],
    pixels: int,
    side: int,
) -> Float32[np.ndarray, "R {pixels} {side}"]:
    """The weight of every sample of a mask in every pixel, along one axis."""
    middle = np.arange(pixels, dtype=np.float32)[None] + np.float32(0.5)
    extent = np.maximum(high - low, np.finfo(np.float32).tiny)[:, None]
    place = (middle - low[:, None]) / extent * side - np.float32(0.5)  # [R, pixels]
    samples = np.arange(side, dtype=np.float32)
    return np.maximum(1 - np.abs(place[..., None] - samples), 0)
