# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and resizing of pictures and label maps on the host, in uint8."""

import numpy as np

IGNORED = 255  # Of a label map: what counts for no class.


def fit_size(size, box):
    """(height, width) of a picture scaled to fit a box, its aspect kept.

    Args:
        size: (height, width) of the picture.
        box: two sides; the longer one bounds the longer side, whichever that is.
    """
    factor = min(max(box) / max(size), min(box) / min(size))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def scaled_box(box, ratio):
    """Both sides of a box times a random ratio, cut off to whole pixels."""
    return tuple(int(side * ratio) for side in box)


def reduce_zero(label_map):
    """Label 0 becomes 255 (ignored), the others one less; 255 stays (ADE20K)."""
    return np.where(label_map == IGNORED, IGNORED, label_map - np.uint8(1))


def resize_image(image, size, part=None):
    """Bilinear, half-pixel centres, no antialias: [H, W, C] uint8 -> [*size, C].

    Args:
        image: the picture.
        size: (height, width) it gets.
        part: (y, x, height, width) of the result, if no more of it is wanted.
    """
    y, x, height, width = (0, 0, *size) if part is None else part
    if image.shape[:2] == tuple(size):
        return image[y : y + height, x : x + width]
    (top, bottom, down), (left, right, across) = map(
        taps, image.shape[:2], size, (y, x), (height, width)
    )
    # Only the columns that are wanted, for the first direction costs the most; and rows
    # of numbers instead of pixels, which NumPy picks faster than threes of them.
    channels, begin = np.arange(image.shape[2]), left[0]
    image = image[:, begin : right[-1] + 1]
    numbers = image.reshape(len(image), -1).astype(np.float32)
    numbers = blended(numbers, 0, top, bottom, down[:, None])
    each = lambda places: ((places - begin)[:, None] * len(channels) + channels).ravel()
    across = np.repeat(across, len(channels))
    numbers = blended(numbers, 1, each(left), each(right), across)
    numbers += 0.5
    return numbers.astype(np.uint8).reshape(height, width, -1)


def taps(old, new, start, count):
    """The two pixels of `old` that each of `count` new ones is made of, and how."""
    centre = np.maximum((np.arange(start, start + count) + 0.5) * old / new - 0.5, 0)
    low = np.minimum(centre.astype(int), old - 1)
    return low, np.minimum(low + 1, old - 1), np.float32(centre - low)


def blended(numbers, axis, low, upper, share):
    """What lies between places `low` and `upper` of an axis, at `share` of the way."""
    low, result = (numbers.take(at, axis, mode="clip") for at in (low, upper))
    result -= low
    result *= share
    result += low
    return result


def resize_labels(label_map, size):
    """The nearest label at the top left, as OpenCV has it: [H, W] -> [*size]."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))), old - 1).astype(int)
        for old, new in zip(label_map.shape, size, strict=True)
    )
    return label_map[rows[:, None], columns]
