# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and resizing of pictures and label maps on the host, in uint8."""

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


def resize_image(
    image: np.ndarray, size: Size, part: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Resizes bilinearly, with half-pixel centres and without antialias.

    Args:
        image: [H, W, C] uint8.
        size: (height, width) of the resized picture.
        part: (y, x, height, width) of the resized picture to compute; None for all.

    Returns:
        uint8 [*size, C], or [height, width, C] of the part.
    """
    y, x, height, width = (0, 0, *size) if part is None else part
    if image.shape[:2] == tuple(size):
        return image[y : y + height, x : x + width]
    (top, bottom, down), (left, right, across) = map(
        interpolation_taps, image.shape[:2], size, (y, x), (height, width)
    )
    # Only the columns that are wanted, for the first direction costs the most; and rows
    # of numbers instead of pixels, which NumPy picks faster than threes of them.
    channels, begin = np.arange(image.shape[2]), left[0]
    image = image[:, begin : right[-1] + 1]
    numbers = image.reshape(len(image), -1).astype(np.float32)
    numbers = blend(numbers, 0, top, bottom, down[:, None])
    flat = lambda places: ((places - begin)[:, None] * len(channels) + channels).ravel()
    across = np.repeat(across, len(channels))
    numbers = blend(numbers, 1, flat(left), flat(right), across)
    numbers += 0.5
    return numbers.astype(np.uint8).reshape(height, width, -1)


def interpolation_taps(
    old: int, new: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two old pixels that each new one lies between, along one axis.

    Args:
        old: length of the axis before resizing.
        new: length after it.
        start: first new pixel.
        count: how many new pixels.

    Returns:
        (lower pixel, upper pixel, share of the upper one), each [count].
    """
    centre = np.maximum((np.arange(start, start + count) + 0.5) * old / new - 0.5, 0)
    low = np.minimum(centre.astype(int), old - 1)
    return low, np.minimum(low + 1, old - 1), np.float32(centre - low)


def blend(
    numbers: np.ndarray,
    axis: int,
    low: np.ndarray,
    upper: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:
    """Interpolates linearly between places `low` and `upper` of an axis."""
    low, result = (numbers.take(at, axis, mode="clip") for at in (low, upper))
    result -= low
    result *= share
    result += low
    return result


def resize_labels(label_map: np.ndarray, size: Size) -> np.ndarray:
    """Nearest neighbour at the top left, as in OpenCV: [H, W] -> [*size]."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))), old - 1).astype(int)
        for old, new in zip(label_map.shape, size, strict=True)
    )
    return label_map[rows[:, None], columns]
