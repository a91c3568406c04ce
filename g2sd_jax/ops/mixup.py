# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixup and cutmix of a batch with itself reversed, and the soft targets they need."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Integer, Key

from g2sd_jax import core


def mix_draws(
    key: Key[ArrayLike, ""],
    image_size: tuple[int, int],
    *,
    mixup: float,
    cutmix: float,
    switch: float,
    prob: float,
) -> dict[str, Array]:
    """Draws one way of mixing for the whole batch, as 0-d arrays.

    Args:
        key: of this step.
        image_size: static (height, width) that the cutmix centre is drawn from.
        mixup: alpha of mixup's Beta(alpha, alpha); 0 = never mixup.
        cutmix: alpha of cutmix's; 0 = never cutmix.
        switch: chance of cutmix where both may be.
        prob: chance that the batch is mixed at all.
    Returns:
        `mix_lam`, the share of the image itself before the box is clipped,
        `mix_cutmix`, `mix_centre_y` and `mix_centre_x`.
    """
    if max(mixup, cutmix) <= 0:
        raise ValueError(
            f"config.augment.mixup={mixup} and config.augment.cutmix={cutmix} leave "
            "nothing to mix; one of them has to be positive."
        )
    keys = core.stream_keys(key, "use", "cutmix", "mixup_lam", "cutmix_lam", "y", "x")
    if mixup > 0 and cutmix > 0:
        boxed = jax.random.bernoulli(keys["cutmix"], switch)
    else:
        boxed = jnp.asarray(cutmix > 0)
    lam = jnp.where(
        boxed,
        jax.random.beta(keys["cutmix_lam"], cutmix or 1.0, cutmix or 1.0),
        jax.random.beta(keys["mixup_lam"], mixup or 1.0, mixup or 1.0),
    )
    use = jax.random.bernoulli(keys["use"], prob)
    return {
        "mix_lam": jnp.where(use, lam, 1.0),
        "mix_cutmix": boxed & use,
        "mix_centre_y": jax.random.randint(keys["y"], (), 0, image_size[0]),
        "mix_centre_x": jax.random.randint(keys["x"], (), 0, image_size[1]),
    }


def mix(
    image: Float[ArrayLike, "B H W c"],
    target: Float[ArrayLike, "B C"],
    draws: Mapping[str, ArrayLike],
) -> tuple[Float[ArrayLike, "B H W c"], Float[ArrayLike, "B C"]]:
    """Blends every example with the one at the same place in the reversed batch.

    Args:
        image: an even number of images.
        target: their soft targets.
        draws: of `mix_draws`.
    """
    if len(image) % 2:
        raise ValueError(
            f"config.batch: a batch of {len(image)} cannot be mixed with its reverse; "
            "use an even batch, or config.augment.mixup=0 and config.augment.cutmix=0."
        )
    height, width = image.shape[1:3]
    lam, boxed = draws["mix_lam"], draws["mix_cutmix"]
    ratio = jnp.sqrt(1 - lam)
    rows = box_side(draws["mix_centre_y"], ratio, height)
    columns = box_side(draws["mix_centre_x"], ratio, width)
    inside = rows[:, None] & columns[None]  # [H, W]
    # In cutmix a pixel is the image's own or its partner's; in mixup it is lam of it.
    share = jnp.where(boxed, 1.0 - inside, lam)[None, :, :, None]
    lam = jnp.where(boxed, 1.0 - inside.mean(), lam)
    image = image * share + image[::-1] * (1 - share)
    return image, target * lam + target[::-1] * (1 - lam)


def box_side(
    centre: Integer[ArrayLike, ""], ratio: Float[ArrayLike, ""], size: int
) -> Bool[ArrayLike, " {size}"]:
    """Marks the pixels inside one side of the cutmix box, clipped by the image."""
    # Half sides as in timm 0.3.2, the reference's: an odd side loses one pixel.
    half = jnp.floor(size * ratio).astype(jnp.int32) // 2
    place = jnp.arange(size)
    return (place >= centre - half) & (place < centre + half)


def smooth_one_hot(
    label: Integer[ArrayLike, " B"], classes: int, smoothing: float
) -> Float32[ArrayLike, "B {classes}"]:
    """Smooths labels: 1 - s + s/C for the label, s/C for each other class."""
    one_hot = jax.nn.one_hot(label, classes)
    return one_hot * (1 - smoothing) + smoothing / classes
