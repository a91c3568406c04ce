# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which part of a picture is looked at: boxes (y, x, height, width) in its pixels."""

import math
import zlib
from typing import NamedTuple

import numpy as np

PUBLISHED = 0.875, 224  # Share of the shorter side, up to this input size; whole above.
PURPOSE = zlib.crc32(b"crop")
SCALED = zlib.crc32(b"scaled crop")  # Its draws depend on no other crop's.


def training_box(size, config, epoch, index):
    """What the training of an epoch sees of an example: the whole recipe says how.

    Args:
        size: (height, width) of the picture.
        config: the recipe.
        epoch: from 0.
        index: of the example.
    """
    augment = config.augment
    if not augment.crop_area:
        return centre_box(size, config.model.image_size)
    drawn = uniforms(config.seed, epoch, index, 2 + 2 * augment.crop_tries)
    return random_box(
        size, drawn, augment.crop_area, augment.crop_aspect, augment.crop_tries
    )


def uniforms(seed, epoch, index, count, purpose=PURPOSE):
    """[count] floats in [0, 1) of one example in one epoch, and of nothing else."""
    bits = np.random.Philox(key=[seed, purpose], counter=[0, 0, index, epoch])
    return np.random.Generator(bits).random(count)


def random_box(size, drawn, area, aspect, tries):
    """A random resized crop, as `ops.augment.random_boxes` has it (after torchvision).

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


def centre_box(size, wanted):
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


def evaluation_box(size, wanted, share):
    """What is left of a picture that is resized by the 224 / 256 rule, then cropped.

    Resizing this box alone equals resizing all and cropping the centre, which is how
    the papers (and torchvision) say it: the shorter side becomes `wanted / share`,
    rounded down, the other one keeps the aspect, rounded down.

    Args:
        size: (height, width) of the picture.
        wanted: (height, width) of the crop; the resized picture covers both / share.
        share: the rule, of `evaluation_share`.
    """
    whole = [int(want / share) for want in wanted]
    fit = max(range(2), key=lambda axis: whole[axis] / size[axis])
    other = max(whole[1 - fit], int(whole[fit] * size[1 - fit] / size[fit]))
    resized = (whole[0], other) if fit == 0 else (other, whole[1])
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


def evaluation_share(given, image_size):
    """`config.data.eval_crop`, or what is published where that is None."""
    if given is None:
        share, largest = PUBLISHED
        return share if max(image_size) <= largest else 1.0
    if not 0 < given <= 1:
        raise ValueError(
            f"config.data.eval_crop={given} is a share of the resized picture: more "
            "than 0, at most 1."
        )
    return given


def eighths(box, wanted, canvas):
    """The largest scale at which a box fits the canvas and still holds enough pixels.

    Measured on photographs against Pillow's bicubic from the full size: a scaled decode
    stays within 1.1 grey levels on average and 1 % of pixels beyond 8, if what is left
    to resize shrinks at least by 1.2, or by 1 where no more than half was taken away.

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


class Scaled(NamedTuple):
    """What is random of a scaled crop."""

    ratio: float  # Of the box that the whole picture is fitted into.
    places: np.ndarray  # [crop_tries + 1, 2] in [0, 1): offsets as shares of the room.


def scaled_draws(config, epoch, index) -> Scaled:
    """The draws of an example in an epoch, by `config.augment`."""
    augment = config.augment
    count = 3 + 2 * augment.crop_tries
    drawn = uniforms(config.seed, epoch, index, count, SCALED)
    low, high = augment.scale
    return Scaled(low + (high - low) * drawn[0], drawn[1:].reshape(-1, 2))


def check_scaled(augment):
    """Refuses what no scaled crop can be made of."""
    sides, scale = tuple(augment.fit), tuple(augment.scale)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(
            f"config.augment.fit={sides}: give two positive sides in pixels."
        )
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise ValueError(
            f"config.augment.scale={scale}: give the lowest and the highest ratio, "
            "both above 0."
        )
    if not 0 < augment.crop_share <= 1 or augment.crop_tries < 0:
        raise ValueError(
            f"config.augment.crop_share={augment.crop_share} is more than 0 and at "
            f"most 1 (any crop will do), crop_tries={augment.crop_tries} at least 0."
        )


def room(size, wanted) -> np.ndarray:
    """[2] how far the top left of a crop may lie from that of its picture."""
    return np.maximum(np.subtract(size, wanted), 0)


def varied(label_map, size, offsets, share) -> int:
    """The number, from 0, of the first crop in which no class takes too much.

    Args:
        label_map: [H, W] uint8, 255 ignored.
        size: (height, width) of the crops; beyond the map there is nothing.
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
