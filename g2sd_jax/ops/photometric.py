# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Photometric distortion on the device, with the 8-bit results of OpenCV.

Brightness, contrast, saturation and hue, each with its own chance; contrast comes
before or after the last two. An image is RGB and holds whole grey levels 0..255, before
and after; the arithmetic between is OpenCV's, rounding included.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32, Key, Num

from g2sd_jax import core

BRIGHTNESS = 32.0  # Added, at most.
FACTOR = (0.5, 1.5)  # Of contrast and of saturation.
HUE = (-18, 18)  # Added, of 180; the end is not drawn, as published.


def draw(key: Key[ArrayLike, ""], count: int, prob: float) -> dict[str, Array]:
    """Draws the changes of colour of `count` images.

    Args:
        key: of this step.
        count: how many images.
        prob: chance of each of the four changes; without it the value is neutral.
    Returns:
        `brightness` [count] to add, `contrast` [count] to multiply with,
        `contrast_first` [count] bool, `saturation` [count] and `hue` [count] int32 with
        `saturate` and `shift_hue` [count] bool: an unchanged hue still takes the way
        through HSV, which costs a level here and there.
    """
    names = ("brightness", "contrast", "saturation", "hue")
    keys = core.stream_keys(key, *names, *(f"use {name}" for name in names), "first")
    use = {
        name: jax.random.bernoulli(keys[f"use {name}"], prob, (count,))
        for name in names
    }
    add = jax.random.uniform(
        keys["brightness"], (count,), minval=-BRIGHTNESS, maxval=BRIGHTNESS
    )
    low, high = FACTOR
    contrast, saturation = (
        jax.random.uniform(keys[name], (count,), minval=low, maxval=high)
        for name in ("contrast", "saturation")
    )
    return {
        "brightness": jnp.where(use["brightness"], add, 0.0),
        "contrast": jnp.where(use["contrast"], contrast, 1.0),
        "contrast_first": jax.random.bernoulli(keys["first"], 0.5, (count,)),
        "saturate": use["saturation"],
        "saturation": saturation,
        "shift_hue": use["hue"],
        "hue": jax.random.randint(keys["hue"], (count,), *HUE),
    }


def apply(
    image: Float[ArrayLike, "B H W 3"], draws: Mapping[str, ArrayLike]
) -> Float[ArrayLike, "B H W 3"]:
    """Changes the colours of a batch as drawn by `draw`."""

    def per_pixel(name):  # [B, 1, 1]
        return draws[name].reshape(-1, 1, 1)

    contrast = per_pixel("contrast")[..., None]
    first = per_pixel("contrast_first")[..., None]
    image = levels(image + per_pixel("brightness")[..., None])
    image = levels(image * jnp.where(first, contrast, 1.0))
    hue, saturation, value = to_hsv(image)
    saturated = to_rgb(hue, levels(saturation * per_pixel("saturation")), value)
    image = jnp.where(per_pixel("saturate")[..., None], saturated, image)
    hue, saturation, value = to_hsv(image)
    shifted = to_rgb((hue + per_pixel("hue")) % 180, saturation, value)
    image = jnp.where(per_pixel("shift_hue")[..., None], shifted, image)
    return levels(image * jnp.where(first, 1.0, contrast))


def levels(x: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
    """Cuts off to whole levels, as published: every change darkens a little."""
    return jnp.floor(jnp.clip(x, 0, 255))


def to_hsv(
    image: Num[ArrayLike, "*shape 3"],
) -> tuple[Float32[ArrayLike, "*shape"], ...]:
    """Computes hue 0..179, saturation and value 0..255, whole numbers all."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    delta = value - jnp.minimum(jnp.minimum(red, green), blue)
    saturation = fixed_point(delta, 255, value)
    from_green = jnp.where(
        value == green, blue - red + 2 * delta, red - green + 4 * delta
    )
    hue = fixed_point(jnp.where(value == red, green - blue, from_green), 30, delta)
    hue = jnp.where(hue < 0, hue + 180, hue)
    return tuple(x.astype(jnp.float32) for x in (hue, saturation, value))


def fixed_point(
    x: Int32[ArrayLike, "*shape"], scale: int, by: Int32[ArrayLike, "*shape"]
) -> Int32[ArrayLike, "*shape"]:
    """Computes x * scale / by with 12 binary digits of scale / by, 0 where `by` is."""
    # Rounded halves never occur: scale * 4096 has too many factors of two for that.
    inverse = (2 * scale * 4096 + by) // jnp.maximum(2 * by, 1)
    return jnp.where(by == 0, 0, (x * inverse + 2048) >> 12)


def to_rgb(
    hue: Float32[ArrayLike, "*shape"],
    saturation: Float32[ArrayLike, "*shape"],
    value: Float32[ArrayLike, "*shape"],
) -> Float32[ArrayLike, "*shape 3"]:
    """Inverts `to_hsv`: hue 0..179, saturation and value 0..255."""
    hue, saturation, value = hue * (6 / 180), saturation / 255, value / 255
    sector = jnp.floor(hue)
    part = hue - sector
    low = value * (1 - saturation)
    down = value * (1 - saturation * part)
    up = value * (1 - saturation * (1 - part))
    sector = sector.astype(jnp.int32)
    channels = [  # Of each sector 0..5.
        (value, down, low, low, up, value),
        (up, value, value, down, low, low),
        (low, low, up, value, value, down),
    ]
    chosen = [
        jnp.select([sector == s for s in range(5)], six[:5], six[5]) for six in channels
    ]
    return levels(jnp.stack(chosen, axis=-1) * 255)
