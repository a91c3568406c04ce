# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A plain Python loop with Pillow for a recipe's pictures with label maps."""

import io

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from g2sd_jax import label_values
from g2sd_jax.data import crops, decoder, geometry
from g2sd_jax.data.maps import source as maps


def load(
    data: bytes, stored: bytes, config: ConfigDict, index: int, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one training example: decoded, scaled, cropped, mirrored, padded.

    The very crop that `data.maps` takes in epoch 0. Pillow resizes no more of the
    picture than the crop, the fastest way it has; where a picture shrinks it blurs
    first, which the recipe does not.

    Args:
        data: of the picture's file.
        stored: of the file of its label map.
        config: the recipe.
        index: of the example.
        flip: whether to mirror it.
    Returns:
        The image [H, W, c] and its label map [H, W], uint8.
    """
    # Pillow spreads grey levels of 1, 2 and 4 bits over 0..255; labels are as stored.
    label_map = maps.decode(stored, f"label map {index}")
    label_map = Image.fromarray(maps.label_table(config)[label_map])
    image = decoder.to_mode(
        ImageOps.exif_transpose(Image.open(io.BytesIO(data))),
        decoder.MODES[config.model.channels],
    )
    augment, wanted = config.augment, tuple(config.model.image_size)
    drawn = crops.draw_scaled_crop(config, 0, index)
    box = geometry.scaled_box(augment.fit, drawn.ratio)
    old, size = image.size[::-1], geometry.fit_size(image.size[::-1], box)
    rows, columns = (before / after for before, after in zip(old, size, strict=True))
    # Its `resize` takes the label in the middle; the recipe, that at the top left. A
    # hair more, for Pillow adds up steps and may end below a whole number.
    corner = (columns, 0, 1e-6 - columns / 2, 0, rows, 1e-6 - rows / 2)
    label_map = label_map.transform(size[::-1], Image.Transform.AFFINE, corner)
    label_map = np.asarray(label_map)
    places = (drawn.places * (crops.offset_limits(size, wanted) + 1)).astype(int)
    y, x = places[
        crops.first_varied_crop(label_map, wanted, places, augment.crop_share)
    ]
    label_map = label_map[y : y + wanted[0], x : x + wanted[1]]
    height, width = label_map.shape
    # Rounding may leave a side a hair outside; Pillow refuses that.
    end = min((x + width) * columns, old[1]), min((y + height) * rows, old[0])
    source_box = x * columns, y * rows, *end
    kind = Image.Resampling.BILINEAR
    image = np.asarray(image.resize((width, height), kind, box=source_box))
    pixels = np.zeros((*wanted, config.model.channels), np.uint8)
    labels = np.full(wanted, label_values.IGNORED, np.uint8)
    side = slice(None, None, -1) if flip else slice(None)
    pixels[:height, :width] = image.reshape(height, width, -1)[:, side]
    labels[:height, :width] = label_map[:, side]
    return pixels, labels
