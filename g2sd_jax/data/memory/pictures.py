# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any sizes as one uint8 array, for sets that fit into memory."""

from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

import numpy as np
from PIL import Image

from g2sd_jax.data import crops, decoder, encoded, geometry
from g2sd_jax.data.processes import threads

T = TypeVar("T")


def decode(
    files: encoded.Encoded, image_size: geometry.Size, channels: int
) -> np.ndarray:
    """[N, H, W, C] uint8 of all pictures, on the canvas of `canvas_size`."""
    decoder.check_channels(channels)
    indices = range(files.count)
    with futures.ThreadPoolExecutor(min(16, len(threads.cores()))) as pool:
        # Headers first, so that big pictures are never held all at their own size.
        read = lambda index: open_picture(files, index, channels).size
        canvas = canvas_size(set(pool.map(read, indices)), image_size)

        def upright(index):
            picture = open_picture(files, index, channels)
            full_box = (0, 0, *picture.size)
            pixels, _ = name_failure(files, index, lambda: picture.cut(full_box))
            return fit(pixels, canvas)

        pixels = np.empty((files.count, *canvas, channels), np.uint8)
        for row, picture in enumerate(pool.map(upright, indices)):
            pixels[row] = picture
    return pixels


def open_picture(files: encoded.Encoded, index: int, channels: int) -> decoder.Picture:
    """Opens one of the files; an error names it."""
    return name_failure(
        files, index, lambda: decoder.open_picture(files.read(index), channels)
    )


def name_failure(files: encoded.Encoded, index: int, call: Callable[[], T]) -> T:
    """Calls a function that reads one of the files; an error names the file."""
    try:
        return call()
    except (OSError, decoder.Unreadable) as error:
        raise ValueError(
            f"{files.name(index)} cannot be decoded as a picture ({error}); repair or "
            "remove it."
        ) from error


def fit_to_canvas(image: np.ndarray, image_size: geometry.Size) -> np.ndarray:
    """Brings decoded pictures [N, H, W, C] uint8 to the canvas of `canvas_size`."""
    canvas = canvas_size({image.shape[1:3]}, image_size)
    if image.shape[1:3] == canvas:
        return image
    fitted = [
        np.concatenate(
            [fit(picture[..., [c]], canvas) for c in range(image.shape[-1])], -1
        )
        for picture in image
    ]
    return np.stack(fitted)


def canvas_size(sizes: set[geometry.Size], image_size: geometry.Size) -> geometry.Size:
    """The size that all pictures share if it is large enough, else the model's.

    Args:
        sizes: (height, width) of all pictures.
        image_size: (height, width) of the model's input.
    """
    height, width = image_size
    if len(sizes) == 1:
        [shared] = sizes
        if shared[0] >= height and shared[1] >= width:
            return shared
    return (height, width)


def fit(pixels: np.ndarray, canvas: geometry.Size) -> np.ndarray:
    """Resizes [h, w, C] uint8 to cover the canvas, and crops the centre."""
    if pixels.shape[:2] == tuple(canvas):
        return pixels
    return resize(pixels, crops.centre_box(pixels.shape[:2], canvas), canvas)


def resize(pixels: np.ndarray, box: geometry.Box, size: geometry.Size) -> np.ndarray:
    """Resizes a box of pixels [h, w, C] to [*size, C] uint8, bicubic, by Pillow."""
    y, x, height, width = box
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    # Rounding may leave a side a hair outside; Pillow refuses that.
    box = (x, y, min(x + width, image.width), min(y + height, image.height))
    image = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).reshape(*size, -1)
