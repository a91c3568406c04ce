# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From the host's uint8 crop and label map to what a segmentor sees.

Mirrored, distorted in colour, normalised, and only then padded: what lies outside of a
picture that is smaller than the crop is 0 after normalisation, as published.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from g2sd_jax import core
from g2sd_jax.ops import augment, photometric


class Spec(NamedTuple):
    """What `draw` and `prepare` do; a chance of 0 draws nothing."""

    mean: tuple[float, ...]  # Of pixels in 0..1, per channel or one for all.
    std: tuple[float, ...]
    flip: float = 0.0
    photometric: float = 0.0


def spec(config, train: bool) -> Spec:
    """The recipe's `Spec`; one for evaluation only normalises and pads."""
    fixed = augment.spec(config, train=False)
    if not train:
        return Spec(fixed.mean, fixed.std)
    if config.augment.photometric and config.model.channels != 3:
        raise ValueError(
            f"config.augment.photometric={config.augment.photometric} changes hue and "
            f"saturation, but config.model.channels={config.model.channels} is not 3 "
            "(RGB); set it to 0.0."
        )
    return Spec(fixed.mean, fixed.std, config.augment.flip, config.augment.photometric)


def draw(key, batch, spec: Spec) -> dict:
    """Everything random in `prepare`: `flip` [B] bool, and `photometric.draw`'s."""
    keys = core.stream_keys(key, "flip", "photometric")
    count, draws = len(batch["image"]), {}
    if spec.flip > 0:
        draws["flip"] = jax.random.bernoulli(keys["flip"], spec.flip, (count,))
    if spec.photometric > 0:
        draws |= photometric.draw(keys["photometric"], count, spec.photometric)
    return draws


def prepare(batch, draws, spec: Spec) -> dict:
    """Opens the loss: from here on `image` is float32, normalised and padded.

    An image that arrives in floating point counts as all of that, its label map too.
    What `draws` lacks is not done.

    Args:
        batch: `image` [B, H, W, C] uint8, perhaps `label_map` [B, H, W] uint8, and
            `image_size` [B, 2], the height and width of the picture at the top left;
            without it the pictures fill their crops.
        draws: of `draw`, or the very numbers that a reference used.
        spec: what to do.
    """
    batch = dict(batch)
    image, size = batch["image"], batch.get("image_size")
    if jnp.issubdtype(image.dtype, jnp.floating):
        return {**batch, "image": image.astype(jnp.float32)}
    if "flip" in draws:
        image = mirror(image, draws["flip"], size)
        if "label_map" in batch:
            label_map = mirror(batch["label_map"][..., None], draws["flip"], size)
            batch["label_map"] = label_map[..., 0]
    image = image.astype(jnp.float32)
    if "brightness" in draws:
        image = photometric.apply(image, draws)
    image = augment.normalise(image, spec)
    if size is not None:
        image = jnp.where(inside(size, image.shape[1:3])[..., None], image, 0.0)
    return {**batch, "image": image}


def mirror(image, flip, size):
    """Those of [B, H, W, C] where `flip` [B], each within its own width."""
    if size is None:
        mirrored = image[:, :, ::-1]
    else:
        column, width = jnp.arange(image.shape[2])[None], size[:, 1:]
        source = jnp.where(column < width, width - 1 - column, column)  # [B, W]
        mirrored = jnp.take_along_axis(image, source[:, None, :, None], axis=2)
    return jnp.where(flip[:, None, None, None], mirrored, image)


def inside(size, canvas):
    """[B, H, W] True where the pictures of sizes [B, 2] are."""
    rows, columns = (
        jnp.arange(side)[None] < size[:, i, None] for i, side in enumerate(canvas)
    )
    return rows[:, :, None] & columns[:, None, :]
