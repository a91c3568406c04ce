# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The device's part of a segmentor's input: flip, distort, normalise, pad.

Padded last: what lies outside of a picture that is smaller than the crop is 0 after
normalisation, as published.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Integer, Key, Shaped
from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.ops import augment, photometric


class Spec(NamedTuple):
    """The settings of `draw` and `prepare`; a chance of 0 draws nothing."""

    mean: tuple[float, ...]  # Of pixels in 0..1, per channel or one for all.
    std: tuple[float, ...]
    flip: float = 0.0
    photometric: float = 0.0


def spec(config: ConfigDict, train: bool) -> Spec:
    """Reads the `Spec` of a recipe; for evaluation one that normalises and pads."""
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


def draw(
    key: Key[ArrayLike, ""], batch: Mapping[str, ArrayLike], spec: Spec
) -> dict[str, Array]:
    """Draws everything random in `prepare`, as far as `spec` asks for it.

    Returns:
        `flip` [B] bool, and the results of `photometric.draw`.
    """
    keys = core.stream_keys(key, "flip", "photometric")
    count, draws = len(batch["image"]), {}
    if spec.flip > 0:
        draws["flip"] = jax.random.bernoulli(keys["flip"], spec.flip, (count,))
    if spec.photometric > 0:
        draws |= photometric.draw(keys["photometric"], count, spec.photometric)
    return draws


def prepare(
    batch: Mapping[str, ArrayLike], draws: Mapping[str, ArrayLike], spec: Spec
) -> dict[str, ArrayLike]:
    """Augments, normalises and pads a batch, as the first line of the loss.

    Idempotent, as `core.Stage.augment` has to be: a batch whose image arrives in
    floating point is returned as it is. What `draws` lacks is not done.

    Args:
        batch: `image` [B, H, W, c] uint8, perhaps `label_map` [B, H, W] uint8, and
            `image_size` [B, 2], the height and width of the picture at the top left;
            without it the pictures fill their crops.
        draws: of `draw`, or the very numbers that a reference used.
        spec: the numbers to use.
    Returns:
        The batch with `image` float32, normalised and padded.
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
    image = augment.normalise(image, spec.mean, spec.std)
    if size is not None:
        image = jnp.where(inside(size, image.shape[1:3])[..., None], image, 0.0)
    return {**batch, "image": image}


def mirror(
    image: Shaped[ArrayLike, "B H W c"],
    flip: Bool[ArrayLike, " B"],
    size: Integer[ArrayLike, "B 2"] | None,
) -> Shaped[ArrayLike, "B H W c"]:
    """Mirrors the images where `flip`, each within the width that `size` gives it."""
    if size is None:
        mirrored = image[:, :, ::-1]
    else:
        column, width = jnp.arange(image.shape[2])[None], size[:, 1:]
        source = jnp.where(column < width, width - 1 - column, column)  # [B, W]
        mirrored = jnp.take_along_axis(image, source[:, None, :, None], axis=2)
    return jnp.where(flip[:, None, None, None], mirrored, image)


def inside(
    size: Integer[ArrayLike, "B 2"], canvas: Sequence[int]
) -> Bool[ArrayLike, "B H W"]:
    """Marks the pixels of pictures of these sizes at the top left of their canvas."""
    rows, columns = (
        jnp.arange(side)[None] < size[:, i, None] for i, side in enumerate(canvas)
    )
    return rows[:, :, None] & columns[:, None, :]
