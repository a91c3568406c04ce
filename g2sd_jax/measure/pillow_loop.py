# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A plain Python loop with Pillow for a recipe's input, which ours is compared with."""

import io
import math

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageOps

from g2sd_jax.data import crops, decoder
from g2sd_jax.ops import randaugment

ENHANCED = ("Color", "Contrast", "Brightness", "Sharpness")


def load(
    data: bytes, config: ConfigDict, index: int, flip: bool, rng: np.random.Generator
) -> np.ndarray:
    """Makes one training example, all of it on the host.

    Args:
        data: of the picture's file.
        config: the recipe; with RandAugment also normalised and erased.
        index: of the example, whose crop in epoch 0 is taken.
        flip: whether to mirror it.
        rng: generator of everything else.
    Returns:
        [H, W, c] uint8, or float32 where the recipe has RandAugment.
    """
    image = cropped(data, config, index)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if not config.augment.randaugment:
        return np.asarray(image)
    fill = tuple(min(255, round(255 * value)) for value in config.data.mean)
    mean, deviation = randaugment.parse(config.augment.randaugment)
    for _ in range(2):
        if rng.random() < 0.5:
            magnitude = float(np.clip(rng.normal(mean, deviation), 0, 10))
            image = operation(image, rng.integers(15), magnitude, fill, rng)
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - np.float32(config.data.mean)) / np.float32(config.data.std)
    if rng.random() < config.augment.erase:
        erase(pixels, rng)
    return pixels


def cropped(data: bytes, config: ConfigDict, index: int) -> Image.Image:
    """Decodes a picture, cuts the crop of epoch 0 out of it, and resizes that.

    Unlike a `box`, a cut hides the pixels around it from the kernel.
    """
    image = decoder.to_mode(
        ImageOps.exif_transpose(Image.open(io.BytesIO(data))),
        decoder.MODES[config.model.channels],
    )
    augment, size = config.augment, tuple(config.model.image_size)
    y, x, height, width = crops.training_box(
        image.size[::-1], crops.rule(config), 0, index
    )
    if augment.crop_area:
        image = image.crop((x, y, x + width, y + height))
        return image.resize(size[::-1], Image.Resampling.BICUBIC)
    box = (x, y, x + width, y + height)
    return image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)


def operation(
    image: Image.Image,
    number: int,
    magnitude: float,
    fill: tuple[int, ...],
    rng: np.random.Generator,
) -> Image.Image:
    """Applies one of the fifteen operations of RandAugment, by Pillow."""
    sign = 1 if rng.random() < 0.5 else -1
    if number == 0:
        return ImageOps.autocontrast(image)
    if number == 1:
        return ImageOps.equalize(image)
    if number == 2:
        return ImageOps.invert(image)
    if number == 3:
        return ImageOps.posterize(image, max(1, 4 - int(0.4 * magnitude)))
    if number == 4:
        return ImageOps.solarize(image, 256 - int(25.6 * magnitude))
    if number == 5:
        added = int(11 * magnitude)
        table = [min(255, i + added) if i < 128 else i for i in range(256)]
        return image.point(table * len(image.getbands()))
    if number < 10:
        enhance = getattr(ImageEnhance, ENHANCED[number - 6])
        return enhance(image).enhance(1 + sign * 0.09 * magnitude)
    how = dict(resample=Image.Resampling.BICUBIC)
    if number == 10:
        return image.rotate(sign * 3 * magnitude, fillcolor=fill, **how)
    share = sign * (0.03 if number < 13 else 0.045) * magnitude
    matrix = {
        11: (1, share, 0, 0, 1, 0),
        12: (1, 0, 0, share, 1, 0),
        13: (1, 0, share * image.width, 0, 1, 0),
        14: (1, 0, 0, 0, 1, share * image.height),
    }[number]
    affine = Image.Transform.AFFINE
    return image.transform(image.size, affine, matrix, fillcolor=fill, **how)


def erase(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Fills one box of [H, W, c] with noise."""
    height, width, channels = pixels.shape
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = rng.standard_normal((h, w, channels), np.float32)
            pixels[y : y + h, x : x + w] = noise
            return
