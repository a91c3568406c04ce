# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colour jitter on the device, as torchvision does it with Pillow's integer results."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from g2sd_jax import core
from g2sd_jax.ops import randaugment


def hue(
    image: Float[ArrayLike, "H W 3"], turn: Float[ArrayLike, ""]
) -> Float32[ArrayLike, "H W 3"]:
    """Turns the colour circle by a share of it, -0.5..0.5.

    By way of 8-bit hue, saturation and value, whose rounding is part of the result.
    """
    angle, saturation, value = hue_saturation_value(image.astype(jnp.int32))
    shift = jnp.trunc(turn * 255).astype(jnp.int32)
    return red_green_blue((angle + shift) % 256, saturation, value)


def hue_saturation_value(
    image: Int32[ArrayLike, "H W 3"],
) -> tuple[Int32[ArrayLike, "H W"], Int32[ArrayLike, "H W"], Int32[ArrayLike, "H W"]]:
    """Computes hue, saturation and value, 0..255 each, fractions cut off."""
    r, g, b = (image[..., i] for i in range(3))
    value, low = image.max(axis=-1), image.min(axis=-1)
    spread = value - low
    # Sixths of the circle, times the spread, from where the largest channel points.
    place = jnp.where(
        r == value,
        g - b,
        jnp.where(g == value, 2 * spread + b - r, 4 * spread + r - g),
    )
    circle = jnp.maximum(6 * spread, 1)
    angle = (place % circle) * 255 // circle
    return angle, spread * 255 // jnp.maximum(value, 1), value


def red_green_blue(
    angle: Int32[ArrayLike, "H W"],
    saturation: Int32[ArrayLike, "H W"],
    value: Int32[ArrayLike, "H W"],
) -> Float32[ArrayLike, "H W 3"]:
    """Inverts `hue_saturation_value`; levels are rounded."""
    # Each channel is `value` on two sixths of the circle, lacks the saturated share of
    # it on the opposite two, and changes evenly in between.
    from_channel = jnp.array([5, 3, 1])[None, None] + angle[..., None] * 6 / 255
    sixths = from_channel % 6
    lack = jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)
    return jnp.floor(value[..., None] * (1 - saturation[..., None] / 255 * lack) + 0.5)


OPERATIONS = {  # In the order in which the recipe gives their amounts.
    "brightness": randaugment.brightness,
    "contrast": randaugment.contrast,
    "saturation": randaugment.color,
    "hue": hue,
}


def check(amounts: Sequence[float], channels: int) -> tuple[float, ...]:
    """Checks `config.augment.color_jitter`: four amounts, or none."""
    amounts = tuple(amounts)
    if amounts and (len(amounts) != 4 or min(amounts) < 0 or amounts[3] > 0.5):
        raise ValueError(
            f"config.augment.color_jitter={amounts}: give four amounts, of "
            f"{', '.join(OPERATIONS)}, none negative and that of hue at most 0.5, such "
            "as (0.4, 0.4, 0.4, 0.1), or () for none."
        )
    if amounts and amounts[3] and channels != 3:
        raise ValueError(
            f"config.augment.color_jitter={amounts}: pictures of {channels} channels "
            "have no hue; set its last amount to 0."
        )
    return amounts


def draw(
    key: Key[ArrayLike, ""], count: int, amounts: Sequence[float]
) -> dict[str, Array]:
    """Draws amounts and order of the operations for each of `count` images.

    Args:
        key: of this step.
        count: how many images.
        amounts: four, of OPERATIONS. A factor is drawn from 1 - amount (0 at the
            least) to 1 + amount, a hue from -amount to amount.
    Returns:
        `jitter_NAME` [count] float32 for every amount that is not 0, and
        `jitter_order` [count, their number] int32, places in the list of these.
    """
    keys = core.stream_keys(key, *OPERATIONS, "order")
    draws = {}
    for name, amount in zip(OPERATIONS, amounts, strict=True):
        low, high = max(0.0, 1 - amount), 1 + amount
        if name == "hue":
            low, high = -amount, amount
        if amount:
            drawn = jax.random.uniform(keys[name], (count,), minval=low, maxval=high)
            draws[f"jitter_{name}"] = drawn
    shuffled = jax.random.uniform(keys["order"], (count, len(draws)))
    return {**draws, "jitter_order": jnp.argsort(shuffled, axis=1)}


def apply(
    image: Float[ArrayLike, "B H W c"], draws: Mapping[str, ArrayLike]
) -> Float[ArrayLike, "B H W c"]:
    """Jitters the colours of whole grey levels 0..255.

    Args:
        image: the batch.
        draws: of `draw`; other entries are ignored.
    """
    names = [name for name in OPERATIONS if f"jitter_{name}" in draws]
    amounts = jnp.stack([draws[f"jitter_{name}"] for name in names], axis=1)
    jitter_image = functools.partial(jitter, names=names)
    # As in RandAugment: on CPUs an image takes the branches of its own order only.
    return jax.lax.platform_dependent(
        image,
        amounts,
        draws["jitter_order"],
        cpu=lambda *batch: jax.lax.map(lambda example: jitter_image(*example), batch),
        default=jax.vmap(jitter_image),
    )


def jitter(
    image: Float[ArrayLike, "H W c"],
    amounts: Float[ArrayLike, " operations"],
    order: Int[ArrayLike, " operations"],
    names: Sequence[str],
) -> Float[ArrayLike, "H W c"]:
    """Applies the named operations to one image, in this order."""
    branches = [OPERATIONS[name] for name in names]
    for place in range(len(names)):
        image = jax.lax.switch(order[place], branches, image, amounts[order[place]])
    return image
