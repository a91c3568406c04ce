# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Random erasing: a box of some images becomes noise (mode `pixel`, one box)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, UInt32

from g2sd_jax import core

AREA = (0.02, 1 / 3)  # Shares of the image.
ASPECT = (0.3, 1 / 0.3)  # Height over width.
TRIES = 10


def draw(
    key: Key[ArrayLike, ""], count: int, image_size: tuple[int, int], prob: float
) -> dict[str, Array]:
    """Draws the boxes to erase, and the seeds of their noise.

    Args:
        key: of this step.
        count: how many images.
        image_size: (height, width).
        prob: chance that an image loses a box.
    Returns:
        `erase_box` [count, 4] int32 y, x, height, width, zeros for none, and
        `erase_seed` [count, ...] uint32, the data of one key each: the noise itself
        is as large as the images, so it is made where it is used.
    """
    keys = core.stream_keys(key, "use", "area", "aspect", "y", "x", "noise")
    height, width = image_size
    shape = (count, TRIES)
    low, high = AREA
    area = jax.random.uniform(keys["area"], shape, minval=low, maxval=high)
    area = area * (height * width)
    low, high = (math.log(bound) for bound in ASPECT)
    ratio = jnp.exp(jax.random.uniform(keys["aspect"], shape, minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    h, w = (jnp.take_along_axis(side, first, axis=1)[:, 0] for side in (h, w))
    y = jnp.floor(jax.random.uniform(keys["y"], (count,)) * (height - h + 1))
    x = jnp.floor(jax.random.uniform(keys["x"], (count,)) * (width - w + 1))
    use = jax.random.bernoulli(keys["use"], prob, (count,)) & fits.any(axis=1)
    box = jnp.stack([y, x, h, w], axis=1) * use[:, None]
    seeds = jax.random.key_data(jax.random.split(keys["noise"], count))
    return {"erase_box": box.astype(jnp.int32), "erase_seed": seeds}


def apply(
    image: Float[ArrayLike, "B H W c"], draws: Mapping[str, ArrayLike]
) -> Float[ArrayLike, "B H W c"]:
    """Fills the boxes of `draw` in normalised images by N(0, 1)."""
    return jax.vmap(erase)(image, draws["erase_box"], draws["erase_seed"])


def erase(
    image: Float[ArrayLike, "H W c"],
    box: Int[ArrayLike, "4"],
    seed: UInt32[ArrayLike, " words"],
) -> Float[ArrayLike, "H W c"]:
    """Fills one box (y, x, height, width) of one image by N(0, 1)."""
    y, x, height, width = box
    rows, columns = (jnp.arange(size) for size in image.shape[:2])
    rows = (rows >= y) & (rows < y + height)
    columns = (columns >= x) & (columns < x + width)
    noise = jax.random.normal(jax.random.wrap_key_data(seed), image.shape)
    return jnp.where((rows[:, None] & columns[None])[..., None], noise, image)
