# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment on the device: fifteen operations with the integer results of Pillow."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Num, UInt32

from g2sd_jax import core

Image = Float[Array, "H W c"]  # Whole grey levels 0..255, before and after.
Scalar = Num[ArrayLike, ""]
Rows = tuple[tuple[Scalar, Scalar, Scalar], tuple[Scalar, Scalar, Scalar]]

POLICY = re.compile(r"rand-m(\d+(?:\.\d+)?)-mstd(\d+(?:\.\d+)?)-inc1")
HIGHEST = 10.0  # Of a magnitude.


def parse(policy: str) -> tuple[float, float]:
    """Reads mean and deviation of the magnitudes from, say, rand-m9-mstd0.5-inc1."""
    match = POLICY.fullmatch(policy)
    if not match:
        raise ValueError(
            f"config.augment.randaugment={policy!r}: give rand-mMEAN-mstdDEVIATION-inc1"
            ", such as rand-m9-mstd0.5-inc1, or '' for none."
        )
    mean, deviation = map(float, match.groups())
    return mean, deviation


# Operations that look each level up.


def look_up(
    table: Int[ArrayLike, "#c 256"], image: Float[ArrayLike, "H W c"]
) -> Float32[ArrayLike, "H W c"]:
    """Replaces each level by its entry of a table, which may differ by channel."""
    height, width, channels = image.shape
    table = jnp.broadcast_to(table, (channels, 256)).astype(jnp.float32)
    result = jnp.take_along_axis(table, planes(image), 1, mode="promise_in_bounds")
    return jnp.moveaxis(result.reshape(channels, height, width), 0, 2)


def planes(image: Float[ArrayLike, "H W c"]) -> Int32[Array, "c H*W"]:
    """Lists the levels by channel, as a TPU pads three innermost channels to 128."""
    return image.astype(jnp.int32).reshape(-1, image.shape[-1]).T


def auto_contrast(image: Image, _argument: Scalar) -> Image:
    """Stretches each channel to 0..255."""
    low, high = (
        bound(image, axis=(0, 1)).astype(jnp.int32)[:, None]
        for bound in (jnp.min, jnp.max)
    )
    level = jnp.arange(256)[None]
    table = (level - low) * 255 // jnp.maximum(high - low, 1)  # [C, 256]
    codes = jnp.asarray(short_levels())
    code = (low * 256 + high) * 256 + level
    place = jnp.minimum(jnp.searchsorted(codes, code), len(codes) - 1)
    table = jnp.clip(table - (codes[place] == code), 0, 255)
    return look_up(jnp.where(high > low, table, level), image)


@functools.cache
def short_levels() -> Int32[np.ndarray, " codes"]:
    """Lists sorted codes (low * 256 + high) * 256 + level, where Pillow is one short.

    It stretches contrast in double precision and cuts the fraction off. Where the exact
    result is whole, the computed one may lie just below: 0.4 % of all the cases.
    """
    low, high = np.triu_indices(256, 1)
    codes = []
    for level in range(256):
        lows, highs = (side[(low <= level) & (level <= high)] for side in (low, high))
        scale = 255.0 / (highs - lows)
        pillow = (level * scale + -lows * scale).astype(int)
        short = pillow < (level - lows) * 255 // (highs - lows)
        codes.append(((lows * 256 + highs) * 256 + level)[short])
    return np.sort(np.concatenate(codes)).astype(np.int32)


def equalize(image: Image, _argument: Scalar) -> Image:
    """Equalizes the histogram of each channel."""
    pixels, channel = planes(image), jnp.arange(image.shape[-1])[:, None]
    counts = jnp.zeros((image.shape[-1], 256), jnp.int32).at[channel, pixels].add(1)
    brightest = jnp.take_along_axis(counts, pixels.max(axis=1, keepdims=True), axis=1)
    step = (pixels.shape[1] - brightest) // 255  # [C, 1]
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    # Too few pixels, or a single level, are left as they are.
    return look_up(jnp.where(step > 0, table, jnp.arange(256)[None]), image)


def invert(image: Image, _argument: Scalar) -> Image:
    """Inverts every level."""
    return 255 - image


def posterize(image: Image, bits: Scalar) -> Image:
    """Keeps the highest bits of every level."""
    # At magnitude 10 the original asks for no bits at all, which Pillow refuses by now.
    step = 2 ** (8 - jnp.maximum(bits.astype(jnp.int32), 1))
    return jnp.floor(image / step) * step


def solarize(image: Image, threshold: Scalar) -> Image:
    """Inverts the levels from a threshold on."""
    return jnp.where(image < threshold, image, 255 - image)


def solarize_add(image: Image, amount: Scalar) -> Image:
    """Adds an amount to the levels below 128."""
    return jnp.where(image < 128, jnp.minimum(image + amount, 255), image)


# Operations that blend with a degenerate image, in Pillow's words: 0 is that one, 1 the
# image itself.


def blend(
    degenerate: Float[ArrayLike, "..."], image: Image, factor: Scalar
) -> Float[ArrayLike, "H W c"]:
    """Blends, beyond both ends too; fractions are cut off.

    Args:
        degenerate: an image, a grey one [H, W, 1], or a level.
        image: the image itself.
        factor: share of the image.
    """
    return jnp.floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def luma(image: Image) -> Float32[ArrayLike, "H W 1"]:
    """Computes ITU-R 601-2 grey of three channels; of another number, their mean."""
    if image.shape[-1] != 3:
        return jnp.round(image.mean(axis=-1, keepdims=True))
    r, g, b = jnp.split(image.astype(jnp.int32), 3, axis=-1)
    grey = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
    return grey.astype(jnp.float32)


def color(image: Image, factor: Scalar) -> Image:
    """Changes the saturation."""
    return blend(luma(image), image, factor)


def contrast(image: Image, factor: Scalar) -> Image:
    """Changes the distance from the mean grey."""
    grey = luma(image).astype(jnp.int32)
    mean = (2 * grey.sum() + grey.size) // (2 * grey.size)  # Rounded, exactly.
    return blend(mean.astype(jnp.float32), image, factor)


def brightness(image: Image, factor: Scalar) -> Image:
    """Changes the distance from black."""
    return blend(jnp.zeros_like(image), image, factor)


def sharpness(image: Image, factor: Scalar) -> Image:
    """Changes the distance from a smoothed image; the border stays."""
    levels = image.astype(jnp.int32)
    height, width = levels.shape[:2]
    shifts = [(y, x) for y in range(3) for x in range(3)]
    total = 4 * levels[1:-1, 1:-1]
    for y, x in shifts:
        total += levels[y : y + height - 2, x : x + width - 2]
    smooth = (2 * total + 13) // 26  # Thirteenths, rounded.
    degenerate = image.at[1:-1, 1:-1].set(smooth.astype(jnp.float32))
    return blend(degenerate, image, factor)


# Operations that move pixels.


def affine(
    image: Image, matrix: Float[ArrayLike, "2 3"], fill: Num[ArrayLike, " c"]
) -> Image:
    """Samples bicubically at `matrix` times the pixel centres (x, y, 1).

    Where a sample lies outside the image, the fill shows. As in Pillow the kernel is
    steeper (a = -1) than that of its resizing, and fractions are cut off.
    """
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    x, y = x + 0.5, y + 0.5
    x, y = (row[0] * x + row[1] * y + row[2] for row in matrix)  # [H, W]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    columns, rows = (
        [jnp.clip(first.astype(jnp.int32) + tap, 0, side - 1) for tap in range(-1, 3)]
        for first, side in ((left, width), (top, height))
    )
    words, across, down = pack(image), (x - left)[None], (y - top)[None]

    def near(row, column):
        place = row * width + column
        words_there = words.at[:, place].get(mode="promise_in_bounds")
        return unpack(words_there, image.shape[-1])  # [C, H, W]

    # One tap at a time, with all its channels in a word: [H, W, 4, 4, C] would not stay
    # on an accelerator's chip, and a TPU pads three innermost channels to 128.
    lines = [
        interpolate([near(row, column) for column in columns], across) for row in rows
    ]
    levels = jnp.floor(jnp.clip(interpolate(lines, down), 0, 255))
    return jnp.where(
        inside[..., None],
        jnp.moveaxis(levels, 0, 2),
        jnp.asarray(fill, jnp.float32)[None, None],
    )


SHIFTS = np.arange(0, 32, 8, dtype=np.uint32)  # Of the four levels of a word.


def pack(image: Image) -> UInt32[Array, "words H*W"]:
    """Puts the levels of four channels into one word, with zeros after the last."""
    height, width, channels = image.shape
    levels = jnp.pad(image.astype(jnp.uint32), ((0, 0), (0, 0), (0, -channels % 4)))
    levels = levels.reshape(height * width, -1, 4) << SHIFTS[None, None]
    return levels.sum(axis=2, dtype=jnp.uint32).T


def unpack(words: UInt32[Array, "words H W"], channels: int) -> Float32[Array, "c H W"]:
    """Returns the levels of the first channels in words of `pack`."""
    levels = (words[:, None] >> SHIFTS[None, :, None, None]) & 255
    return levels.reshape(-1, *words.shape[1:])[:channels].astype(jnp.float32)


def interpolate(
    taps: Sequence[Float[ArrayLike, "c H W"]], place: Float[ArrayLike, "1 H W"]
) -> Float[ArrayLike, "c H W"]:
    """Interpolates between the middle two of four taps by Keys' cubic with a = -1.

    As a polynomial, it is exact where the taps are equal; rounded weights are not.

    Args:
        taps: four neighbouring samples of every pixel.
        place: 0..1 from the second tap to the third.
    """
    a, b, c, d = taps
    third = b - a + d - c
    second = 2 * (a - b) + c - d
    return b + place * (c - a + place * (second + place * third))


def rotate(degrees: Scalar, height: int, width: int) -> Rows:
    """Returns the rows of `affine` that rotate about the centre."""
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    x, y = width / 2, height / 2
    return (cos, -sin, x - x * cos + y * sin), (sin, cos, y - x * sin - y * cos)


def shear_x(slope: Scalar, _height: int, _width: int) -> Rows:
    """Returns the rows of `affine` that shear along x."""
    return (1.0, slope, 0.0), (0.0, 1.0, 0.0)


def shear_y(slope: Scalar, _height: int, _width: int) -> Rows:
    """Returns the rows of `affine` that shear along y."""
    return (1.0, 0.0, 0.0), (slope, 1.0, 0.0)


def translate_x(share: Scalar, _height: int, width: int) -> Rows:
    """Returns the rows of `affine` that shift by a share of the width."""
    return (1.0, 0.0, share * width), (0.0, 1.0, 0.0)


def translate_y(share: Scalar, height: int, _width: int) -> Rows:
    """Returns the rows of `affine` that shift by a share of the height."""
    return (1.0, 0.0, 0.0), (0.0, 1.0, share * height)


# The policy.


class Operation(NamedTuple):
    """One entry of the policy: it has an `effect` or a `matrix`."""

    argument: Callable[[Scalar, Scalar], Scalar]  # Of magnitude 0..10 and sign +-1.
    effect: Callable[[Image, Scalar], Image] | None = None
    matrix: Callable[[Scalar, int, int], Rows] | None = None  # Of height and width.


def unused(magnitude: Scalar, _sign: Scalar) -> Scalar:
    """Returns the argument of an operation that has none."""
    return jnp.zeros_like(magnitude)


def floored(highest: float, magnitude: Scalar) -> Scalar:
    """Returns whole levels or bits, of which the largest magnitude has `highest`."""
    return jnp.floor(magnitude / HIGHEST * highest)


def factor(magnitude: Scalar, sign: Scalar) -> Scalar:
    """Returns the factor of a blend, 1 +- 0.9 at most."""
    # In hundredths, so that magnitude 9 gives the float nearest to 1.81.
    return (100 + 9 * magnitude * sign) / 100


def signed(highest: float) -> Callable[[Scalar, Scalar], Scalar]:
    """Returns an argument of either sign; the largest magnitude has `highest`."""
    return lambda m, sign: m / HIGHEST * highest * sign


OPERATIONS = {
    "AutoContrast": Operation(unused, auto_contrast),
    "Equalize": Operation(unused, equalize),
    "Invert": Operation(unused, invert),
    "Rotate": Operation(signed(30), matrix=rotate),
    "PosterizeIncreasing": Operation(lambda m, _: 4 - floored(4, m), posterize),
    "SolarizeIncreasing": Operation(lambda m, _: 256 - floored(256, m), solarize),
    "SolarizeAdd": Operation(lambda m, _: floored(110, m), solarize_add),
    "ColorIncreasing": Operation(factor, color),
    "ContrastIncreasing": Operation(factor, contrast),
    "BrightnessIncreasing": Operation(factor, brightness),
    "SharpnessIncreasing": Operation(factor, sharpness),
    "ShearX": Operation(signed(0.3), matrix=shear_x),
    "ShearY": Operation(signed(0.3), matrix=shear_y),
    "TranslateXRel": Operation(signed(0.45), matrix=translate_x),
    "TranslateYRel": Operation(signed(0.45), matrix=translate_y),
}
EFFECTS = [operation for operation in OPERATIONS.values() if operation.effect]


def operate(
    operation: Operation,
    image: Image,
    magnitude: Scalar,
    sign: Scalar,
    fill: Num[ArrayLike, " c"],
) -> Image:
    """Applies one of OPERATIONS; `fill` is the colour outside the image."""
    argument = operation.argument(magnitude, sign)
    if operation.effect:
        return operation.effect(image, argument)
    matrix = jnp.array(operation.matrix(argument, *image.shape[:2]))
    return affine(image, matrix, fill)


def draw(
    key: Key[ArrayLike, ""],
    count: int,
    *,
    mean: float,
    deviation: float,
    layers: int = 2,
) -> dict[str, Array]:
    """Draws `layers` operations, one after another, for each of `count` images.

    Args:
        key: of this step.
        count: how many images.
        mean: of the magnitudes.
        deviation: their standard deviation.
        layers: operations per image.
    Returns:
        `ra_op` int32 (a place in OPERATIONS), `ra_apply` bool (half of them),
        `ra_magnitude` float32 in 0..10 and `ra_sign` (+-1), all [count, layers].
    """
    keys = core.stream_keys(key, "op", "apply", "magnitude", "sign")
    shape = (count, layers)
    magnitude = mean + deviation * jax.random.normal(keys["magnitude"], shape)
    return {
        "ra_op": jax.random.randint(keys["op"], shape, 0, len(OPERATIONS)),
        "ra_apply": jax.random.bernoulli(keys["apply"], 0.5, shape),
        "ra_magnitude": jnp.clip(magnitude, 0, HIGHEST),
        "ra_sign": jax.random.rademacher(keys["sign"], shape, jnp.float32),
    }


def apply(
    image: Float[ArrayLike, "B H W c"],
    draws: Mapping[str, ArrayLike],
    fill: Num[ArrayLike, " c"],
) -> Float[ArrayLike, "B H W c"]:
    """Applies to each image the operations drawn for it.

    Args:
        image: whole grey levels 0..255.
        draws: of `draw`; other entries are ignored.
        fill: grey levels of the colour outside the images.
    """
    names = ("ra_op", "ra_apply", "ra_magnitude", "ra_sign")
    per_image = [draws[name] for name in names]
    # Accelerators do the batch at once, each device its share, in every branch. On CPUs
    # one image after another takes its own branch only: with two layers at 224 x 224
    # on two cores 2 ms per image instead of 21 (52 before `affine` was shared).
    return jax.lax.platform_dependent(
        image, *per_image, fill, cpu=one_by_one, default=all_at_once
    )


def all_at_once(
    image: Float[ArrayLike, "B H W c"],
    op: Int[ArrayLike, "B layers"],
    use: Bool[ArrayLike, "B layers"],
    magnitude: Float[ArrayLike, "B layers"],
    sign: Float[ArrayLike, "B layers"],
    fill: Num[ArrayLike, " c"],
) -> Float[ArrayLike, "B H W c"]:
    """Applies the drawn operations to all images at once, as accelerators do."""
    per_image = (image, op, use, magnitude, sign)
    return jax.vmap(lambda *example: apply_layers(*example, fill))(*per_image)


def one_by_one(
    image: Float[ArrayLike, "B H W c"],
    op: Int[ArrayLike, "B layers"],
    use: Bool[ArrayLike, "B layers"],
    magnitude: Float[ArrayLike, "B layers"],
    sign: Float[ArrayLike, "B layers"],
    fill: Num[ArrayLike, " c"],
) -> Float[ArrayLike, "B H W c"]:
    """Applies the drawn operations to one image after another, as CPUs do."""
    per_image = (image, op, use, magnitude, sign)
    return jax.lax.map(lambda example: apply_layers(*example, fill), per_image)


def apply_layers(
    image: Image,
    op: Int[ArrayLike, " layers"],
    use: Bool[ArrayLike, " layers"],
    magnitude: Float[ArrayLike, " layers"],
    sign: Float[ArrayLike, " layers"],
    fill: Num[ArrayLike, " c"],
) -> Image:
    """Applies the drawn operations to one image, those that are to be used."""
    for layer in range(len(op)):
        drawn = (values[layer] for values in (op, use, magnitude, sign))
        image = apply_layer(image, *drawn, fill)
    return image


def apply_layer(
    image: Image,
    op: Int[ArrayLike, ""],
    use: Bool[ArrayLike, ""],
    magnitude: Float[ArrayLike, ""],
    sign: Float[ArrayLike, ""],
    fill: Num[ArrayLike, " c"],
) -> Image:
    """Applies one drawn operation to one image."""
    size = image.shape[:2]
    matrices, places = [], []
    for operation in OPERATIONS.values():
        if operation.matrix:
            argument = operation.argument(magnitude, sign)
            matrices.append(jnp.array(operation.matrix(argument, *size)))
            places.append(len(EFFECTS))
        else:
            matrices.append(jnp.eye(2, 3))
            places.append(EFFECTS.index(operation))
    # Under vmap a switch computes every branch, so the five that move pixels share one.
    matrix = jnp.stack(matrices)[op]
    branches = [functools.partial(operate, effect, fill=fill) for effect in EFFECTS]
    branches.append(lambda image, _magnitude, _sign: affine(image, matrix, fill))
    branches.append(lambda image, _magnitude, _sign: image)
    place = jnp.where(use, jnp.array(places)[op], len(branches) - 1)
    return jax.lax.switch(place, branches, image, magnitude, sign)
