# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colour jitter on the device, as torchvision does it with Pillow's integer results.

An image is [H, W, C] float32 that holds whole grey levels 0..255, before and after.
"""

import functools

import jax
import jax.numpy as jnp

from g2sd_jax import core
from g2sd_jax.ops import randaugment


def hue(image, turn):
    """The colour circle turned by `turn` (a share of it, -0.5..0.5); three channels.

    By way of 8-bit hue, saturation and value, whose rounding is part of the result.
    """
    turned, saturation, value = hue_saturation_value(image.astype(jnp.int32))
    shift = jnp.trunc(turn * 255).astype(jnp.int32)
    return red_green_blue((turned + shift) % 256, saturation, value)


def hue_saturation_value(image):
    """[H, W, 3] int32 levels -> three [H, W] of 0..255, fractions cut off."""
    r, g, b = (image[..., i] for i in range(3))
    value, low = image.max(axis=-1), image.min(axis=-1)
    spread = value - low
    # Sixths of the circle, times the spread, from where the largest channel points.
    place = jnp.where(
        r == value,
        g - b,
        jnp.where(g == value, 2 * spread + b - r, 4 * spread + r - g),
    )
    whole = jnp.maximum(6 * spread, 1)
    turned = (place % whole) * 255 // whole
    return turned, spread * 255 // jnp.maximum(value, 1), value


def red_green_blue(turned, saturation, value):
    """[H, W, 3] float32 levels, rounded; the inverse of the above."""
    # Each channel is `value` on two sixths of the circle, lacks the saturated share of
    # it on the opposite two, and changes evenly in between.
    from_channel = jnp.array([5, 3, 1])[None, None] + turned[..., None] * 6 / 255
    sixths = from_channel % 6
    lack = jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)
    return jnp.floor(value[..., None] * (1 - saturation[..., None] / 255 * lack) + 0.5)


OPERATIONS = {  # In the order in which the recipe gives their amounts.
    "brightness": randaugment.brightness,
    "contrast": randaugment.contrast,
    "saturation": randaugment.color,
    "hue": hue,
}


def check(amounts, channels):
    """The four amounts of `config.augment.color_jitter` as a tuple, or ()."""
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


def draw(key, count, amounts):
    """How much of what, in which order, happens to each of `count` images.

    Args:
        key: of this step.
        count: B.
        amounts: four, of OPERATIONS. A factor is drawn from 1 - amount (0 at the
            least) to 1 + amount, a hue from -amount to amount.
    Returns:
        `jitter_NAME` [count] float32 of those whose amount is not 0, and
        `jitter_order` [count, their number] int32, places in their list.
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


def apply(image, draws):
    """Each image [H, W, C] of a batch as `draws`, those of `draw`, say."""
    names = [name for name in OPERATIONS if f"jitter_{name}" in draws]
    amounts = jnp.stack([draws[f"jitter_{name}"] for name in names], axis=1)
    one = functools.partial(jitter, names=names)
    # As in RandAugment: on CPUs an image takes the branches of its own order only.
    return jax.lax.platform_dependent(
        image,
        amounts,
        draws["jitter_order"],
        cpu=lambda *batch: jax.lax.map(lambda each: one(*each), batch),
        default=jax.vmap(one),
    )


def jitter(image, amounts, order, names):
    branches = [OPERATIONS[name] for name in names]
    for place in range(len(names)):
        image = jax.lax.switch(order[place], branches, image, amounts[order[place]])
    return image
