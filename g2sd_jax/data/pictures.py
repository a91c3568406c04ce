# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any sizes as one uint8 array, for sets that fit into memory."""

from concurrent import futures

import numpy as np
from PIL import Image

from g2sd_jax.data import crops, decoder, encoded, threads


def decode(held: encoded.Encoded, image_size, channels):
    """[N, H, W, C] uint8 of all pictures, on the canvas `arrays.load` describes."""
    decoder.check_channels(channels)
    indices = range(held.count)
    with futures.ThreadPoolExecutor(min(16, len(threads.cores()))) as pool:
        # Headers first, so that big pictures are never held all at their own size.
        read = lambda index: opened(held, index, channels).size
        canvas = canvas_size(set(pool.map(read, indices)), image_size)

        def upright(index):
            picture = opened(held, index, channels)
            pixels, _ = named(held, index, lambda: picture.cut((0, 0, *picture.size)))
            return fit(pixels, canvas)

        pixels = np.empty((held.count, *canvas, channels), np.uint8)
        for row, picture in enumerate(pool.map(upright, indices)):
            pixels[row] = picture
    return pixels


def opened(held, index, channels):
    return named(held, index, lambda: decoder.opened(held.read(index), channels))


def named(held, index, use):
    """`use()`, whose failure names the picture."""
    try:
        return use()
    except (OSError, decoder.Unreadable) as error:
        raise ValueError(
            f"{held.name(index)} cannot be decoded as a picture ({error}); repair or "
            "remove it."
        ) from error


def on_canvas(image, image_size):
    """The same rule for an array [N, H, W, C] uint8 that is decoded already."""
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


def canvas_size(sizes, image_size):
    height, width = image_size
    if len(sizes) == 1:
        [own] = sizes
        if own[0] >= height and own[1] >= width:
            return own
    return (height, width)


def fit(pixels, canvas):
    """[h, w, C] uint8 resized to cover the canvas, and centre-cropped to it."""
    if pixels.shape[:2] == tuple(canvas):
        return pixels
    return resized(pixels, crops.centre_box(pixels.shape[:2], canvas), canvas)


def resized(pixels, box, size):
    """[*size, C] uint8: a box of pixels [h, w, C], bicubic, by Pillow."""
    y, x, height, width = box
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    # Rounding may leave a side a hair outside; Pillow refuses that.
    box = (x, y, min(x + width, image.width), min(y + height, image.height))
    image = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).reshape(*size, -1)
