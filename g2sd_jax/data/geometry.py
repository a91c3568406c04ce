# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and resizing of pictures and label maps on the host, in uint8."""

import functools
import importlib
import types
from collections.abc import Sequence

import numpy as np

from g2sd_jax import label_values

Size = tuple[int, int]  # (height, width) in pixels.
Box = tuple[float, float, float, float]  # (y, x, height, width) in pixels.


def fit_size(size: Size, box: Sequence[int]) -> Size:
    """(height, width) of a picture scaled to fit a box, its aspect unchanged.

    Args:
        size: (height, width) of the picture.
        box: two sides; the longer one bounds the longer side, whichever that is.
    """
    factor = min(max(box) / max(size), min(box) / min(size))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def scaled_box(box: Sequence[int], ratio: float) -> tuple[int, ...]:
    """Both sides of a box times a ratio, cut off to whole pixels."""
    return tuple(int(side * ratio) for side in box)


def reduce_zero(label_map: np.ndarray) -> np.ndarray:
    """Label 0 becomes 255 (ignored), the others one less; 255 stays (ADE20K)."""
    ignored = label_values.IGNORED
    return np.where(label_map == ignored, ignored, label_map - np.uint8(1))


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes bilinearly as OpenCV does: half-pixel centres, no antialias.

    Args:
        image: [H, W, C] uint8.
        size: (height, width) of the resized picture.

    Returns:
        [*size, C] uint8.
    """
    library = opencv()
    resized = library.resize(
        np.ascontiguousarray(image), size[::-1], interpolation=library.INTER_LINEAR
    )
    return resized.reshape(*size, -1)  # It drops a single channel.


def resize_labels(label_map: np.ndarray, size: Size) -> np.ndarray:
    """Nearest neighbour at the top left, as in OpenCV: [H, W] -> [*size]."""
    library = opencv()
    return library.resize(
        np.ascontiguousarray(label_map),
        size[::-1],
        interpolation=library.INTER_NEAREST,
    )


def replace_labels(label_map: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces each label l of [H, W] uint8 by table[l], of [256] uint8."""
    return opencv().LUT(np.ascontiguousarray(label_map), table)


@functools.cache
def opencv() -> types.ModuleType:
    """OpenCV, which leaves threads to whoever calls it."""
    library = importlib.import_module("cv2")  # Label maps alone pay for importing it.
    library.setNumThreads(1)
    return library
