# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation crops: boxes (y, x, height, width) in a picture's pixels."""

import math
import threading
import zlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import geometry

PUBLISHED = 0.875, 224  # Share of the shorter side, up to this input size; 1 above it.
PURPOSE = zlib.crc32(b"crop")
_generators = threading.local()  # Of one key, one a thread.
SCALED = zlib.crc32(b"scaled crop")  # Its draws depend on no other crop's.


class Rule(NamedTuple):
    """How a recipe crops training pictures."""

    seed: int
    wanted: geometry.Size  # (height, width) of the model's input.
    area: tuple[float, float] | None  # None takes the centre; else as `random_box`.
    aspect: tuple[float, float]
    tries: int


def rule(config: ConfigDict) -> Rule:
    """The `Rule` of a recipe."""
    augment = config.augment
    return Rule(
        seed=config.seed,
        wanted=tuple(config.model.image_size),
        area=tuple(augment.crop_area) if augment.crop_area else None,
        aspect=tuple(augment.crop_aspect),
        tries=augment.crop_tries,
    )


def training_box(
    size: geometry.Size, how: Rule, epoch: int, index: int
) -> geometry.Box:
    """The crop of one example in one epoch, random if the recipe augments.

    Args:
        size: (height, width) of the picture.
        how: the recipe crops.
        epoch: from 0.
        index: of the example.
    """
    if how.area is None:
        return centre_box(size, how.wanted)
    drawn = uniforms(how.seed, epoch, index, 2 + 2 * how.tries)
    return random_box(size, drawn, how.area, how.aspect, how.tries)


def uniforms(
    seed: int, epoch: int, index: int, count: int, purpose: int = PURPOSE
) -> np.ndarray:
    """[count] floats in [0, 1), a function of the arguments alone."""
    key = seed, purpose
    if getattr(_generators, "key", None) != key:
        _generators.key = key
        _generators.bits = np.random.Philox(key=key)
        _generators.drawing = np.random.Generator(_generators.bits)
        _generators.state = _generators.bits.state
    # A generator that begins at another counter, at a fifth of the price of a new one.
    state = _generators.state
    state["state"]["counter"][:] = 0, 0, index, epoch
    _generators.bits.state = state
    return _generators.drawing.random(count)


def random_box(
    size: geometry.Size,
    drawn: np.ndarray,
    area: tuple[float, float],
    aspect: tuple[float, float],
    tries: int,
) -> tuple[int, int, int, int]:
    """A random resized crop, as in `ops.augment.random_boxes` (after torchvision).

    Args:
        size: (height, width) of the picture.
        drawn: [2 + 2 * tries] of `uniforms`.
        area: (lowest, highest) share of the picture, uniform.
        aspect: (lowest, highest) width over height, log-uniform.
        tries: the first that fits is taken, else the largest centred box whose aspect
            is allowed; a single one is clamped to the picture instead.
    """
    height, width = size
    low, high = (math.log(bound) for bound in aspect)
    for share, ratio in drawn[2:].reshape(tries, 2):
        pixels = (area[0] + (area[1] - area[0]) * share) * height * width
        ratio = math.exp(low + (high - low) * ratio)
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if tries == 1:
            h, w = min(max(h, 1), height), min(max(w, 1), width)
        if 0 < h <= height and 0 < w <= width:
            y, x = drawn[0] * (height - h + 1), drawn[1] * (width - w + 1)
            return int(y), int(x), h, w
    h, w = min(height, round(width / aspect[0])), min(width, round(height * aspect[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_box(size: geometry.Size, wanted: geometry.Size) -> geometry.Box:
    """The largest centred box of the wanted size's aspect: resize to cover, then crop.

    Args:
        size: (height, width) of the picture.
        wanted: (height, width) whose aspect the box has.
    """
    scale = min(have / want for have, want in zip(size, wanted, strict=True))
    sides = [want * scale for want in wanted]
    # Rounding may leave the side that fits exactly a hair outside; Pillow refuses that.
    starts = [
        max(0.0, (have - side) / 2) for have, side in zip(size, sides, strict=True)
    ]
    return *starts, *(min(side, have) for side, have in zip(sides, size, strict=True))


def evaluation_box(
    size: geometry.Size, wanted: geometry.Size, share: float
) -> geometry.Box:
    """The centre crop of the 224 / 256 rule, in pixels of the original picture.

    Resizing this box alone equals resizing the picture and cropping the centre, which
    is how the papers (and torchvision) put it: the shorter side becomes
    `wanted / share`, rounded down, the other one keeps the aspect, rounded down.

    Args:
        size: (height, width) of the picture.
        wanted: (height, width) of the crop; the resized picture covers both / share.
        share: from `evaluation_share`.
    """
    covered = [int(want / share) for want in wanted]
    fit = max(range(2), key=lambda axis: covered[axis] / size[axis])
    other = max(covered[1 - fit], int(covered[fit] * size[1 - fit] / size[fit]))
    resized = (covered[0], other) if fit == 0 else (other, covered[1])
    starts = [
        round((new - want) / 2) for new, want in zip(resized, wanted, strict=True)
    ]
    scales = [have / new for have, new in zip(size, resized, strict=True)]
    return (
        starts[0] * scales[0],
        starts[1] * scales[1],
        min(wanted[0] * scales[0], size[0] - starts[0] * scales[0]),
        min(wanted[1] * scales[1], size[1] - starts[1] * scales[1]),
    )


def evaluation_share(eval_crop: float | None, image_size: geometry.Size) -> float:
    """The share of a resized picture that evaluation sees.

    Args:
        eval_crop: `config.data.eval_crop`; None for the published rule.
        image_size: (height, width) of the model's input.
    """
    if eval_crop is None:
        share, largest = PUBLISHED
        return share if max(image_size) <= largest else 1.0
    return eval_crop


def decode_eighths(
    box: geometry.Box, wanted: geometry.Size, canvas: geometry.Size
) -> int | None:
    """The scale, in eighths, at which a JPEG is decoded so that a box fits the canvas.

    The largest that fits and leaves enough pixels. Measured on photographs against
    Pillow's bicubic from the full size: a scaled decode stays within 1.1 grey levels
    on average and 1 % of pixels beyond 8, if what is left to resize shrinks at least by
    1.2, or by 1 where no more than half was taken away.

    Args:
        box: (y, x, height, width).
        wanted: (height, width) it is resized to afterwards.
        canvas: (height, width) it has to fit.

    Returns:
        1..8, or None if there is no such scale.
    """
    for part in range(8, 0, -1):
        # A scaled box starts inside a pixel, so that it touches one more.
        touched = [math.ceil(side * part / 8) + (part < 8) for side in box[2:]]
        if all(side <= most for side, most in zip(touched, canvas, strict=True)):
            least = 0.0 if part == 8 else 1.0 if part > 4 else 1.2
            left = min(s * part / 8 / t for s, t in zip(box[2:], wanted, strict=True))
            return part if left >= least else None
    return None


class ScaledCropDraws(NamedTuple):
    """The random numbers of a scaled crop."""

    ratio: float  # Scales the box that the picture is fitted into.
    places: np.ndarray  # [crop_tries + 1, 2] in [0, 1): offsets as shares of the room.


def draw_scaled_crop(config: ConfigDict, epoch: int, index: int) -> ScaledCropDraws:
    """Draws for one example in one epoch, by `config.augment`."""
    augment = config.augment
    count = 3 + 2 * augment.crop_tries
    drawn = uniforms(config.seed, epoch, index, count, SCALED)
    low, high = augment.scale
    return ScaledCropDraws(low + (high - low) * drawn[0], drawn[1:].reshape(-1, 2))


def offset_limits(size: geometry.Size, wanted: geometry.Size) -> np.ndarray:
    """[2] the largest offsets (y, x) of a crop inside its picture."""
    return np.maximum(np.subtract(size, wanted), 0)


def first_varied_crop(
    label_map: np.ndarray, size: geometry.Size, offsets: np.ndarray, share: float
) -> int:
    """The number, from 0, of the first crop in which no class takes too much.

    Args:
        label_map: [H, W] uint8, 255 ignored.
        size: (height, width) of the crops, which end where the map ends.
        offsets: [n, 2] their top left corners, in the order they are tried; the last
            one is taken unchecked.
        share: one class of at least two has to cover less of what is not ignored; 1
            takes the first crop.
    """
    for number, (y, x) in enumerate(offsets[:-1] if share < 1 else ()):
        part = label_map[y : y + size[0], x : x + size[1]]
        counts = np.bincount(part.ravel(), minlength=256)[:255]
        if counts.max() < share * counts.sum():  # So there are two.
            return number
    return len(offsets) - 1 if share < 1 else 0
