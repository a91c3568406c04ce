# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The device's part of the input: crop, flip, colour, normalise, erase, mix.

Batches and draws are arrays by name; numpy's are as welcome as JAX's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Key
from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.ops import colour, erase, mixup, randaugment, resize


class Spec(NamedTuple):
    """The settings of `draw` and `prepare`; a field that is off draws nothing."""

    image_size: tuple[int, int]  # (height, width) that leaves `prepare`
    mean: tuple[float, ...]  # Of pixels in 0..1, per channel or one for all.
    std: tuple[float, ...]
    classes: int = 0  # Of the soft targets; 0 = make none.
    crop_area: tuple[float, float] | None = None  # Shares of the canvas; None = whole.
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # Width over height.
    crop_tries: int = 10  # Crops drawn until one fits, as in torchvision; 1: clamped.
    flip: float = 0.0
    randaugment: str = ""  # A policy such as rand-m9-mstd0.5-inc1; "" = none.
    color_jitter: tuple[float, ...] = ()  # Amounts, of `colour.OPERATIONS`.
    erase: float = 0.0  # Chance that a box becomes noise.
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    mix_prob: float = 1.0
    smoothing: float = 0.0


def check_normalisation(group: ConfigDict, where: str, channels: int) -> None:
    """Refuses a mean or std that is neither one number nor one for each channel.

    Args:
        group: keys with `mean` and `std`; () stands for another group's.
        where: its name, for errors.
        channels: of the pictures.
    """
    for name in ("mean", "std"):
        values = tuple(group.get(name) or ())
        if values and len(values) not in (1, channels):
            raise ValueError(
                f"{where}.{name}={values} has {len(values)} values for "
                f"config.model.channels={channels}; give one each, or one for all."
            )


def spec(config: ConfigDict, train: bool) -> Spec:
    """Reads the `Spec` of a recipe; for evaluation one that resizes and normalises."""
    check_normalisation(config.data, "config.data", config.model.channels)
    fixed = Spec(
        image_size=tuple(config.model.image_size),  # Of a workdir's JSON: lists.
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )
    if not train:
        return fixed
    augment = config.augment
    for key in ("crop_area", "crop_aspect"):
        if len(augment[key]) not in (0, 2):
            raise ValueError(
                f"config.augment.{key}={tuple(augment[key])}: give (lowest, highest)."
            )
    part = config.batch // config.accumulate
    if (augment.mixup or augment.cutmix) and part % 2:
        raise ValueError(
            f"config.batch={config.batch} in config.accumulate={config.accumulate} "
            f"parts of {part}: mixing pairs the examples of a part, so it must be "
            "even; or set config.augment.mixup=0.0 and config.augment.cutmix=0.0."
        )
    if augment.randaugment:
        randaugment.parse(augment.randaugment)
    return fixed._replace(
        classes=config.data.classes,
        crop_area=tuple(augment.crop_area) if augment.crop_area else None,
        crop_aspect=tuple(augment.crop_aspect),
        crop_tries=augment.crop_tries,
        flip=augment.flip,
        randaugment=augment.randaugment,
        color_jitter=colour.check(augment.color_jitter, config.model.channels),
        erase=augment.erase,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        switch=augment.switch,
        mix_prob=augment.mix_prob,
        smoothing=augment.smoothing,
    )


def draw(
    key: Key[ArrayLike, ""], batch: Mapping[str, ArrayLike], spec: Spec
) -> dict[str, Array]:
    """Draws everything random in `prepare`, as far as `spec` asks for it.

    Returns:
        Arrays [B, ...], or 0-d ones shared by the batch: `crop` [B, 4] (y, x, height,
        width in canvas pixels), `flip` [B] bool, and the results of `draw` of
        `randaugment`, `colour` and `erase` and of `mixup.mix_draws`.
    """
    keys = core.stream_keys(key, "crop", "flip", "mix")
    count, *canvas = batch["image"].shape[:3]
    draws = {}
    if spec.crop_area is not None and "crop" not in batch:
        draws["crop"] = random_boxes(
            keys["crop"],
            count,
            canvas,
            spec.crop_area,
            spec.crop_aspect,
            spec.crop_tries,
        )
    if spec.flip > 0:
        draws["flip"] = jax.random.bernoulli(keys["flip"], spec.flip, (count,))
    if spec.randaugment:
        mean, deviation = randaugment.parse(spec.randaugment)
        stream = core.stream_keys(key, "randaugment")
        draws |= randaugment.draw(
            stream["randaugment"], count, mean=mean, deviation=deviation
        )
    if any(spec.color_jitter):
        stream = core.stream_keys(key, "colour")
        draws |= colour.draw(stream["colour"], count, spec.color_jitter)
    if spec.erase > 0:
        stream = core.stream_keys(key, "erase")
        draws |= erase.draw(stream["erase"], count, spec.image_size, spec.erase)
    if spec.mixup > 0 or spec.cutmix > 0:
        draws |= mixup.mix_draws(
            keys["mix"],
            spec.image_size,
            mixup=spec.mixup,
            cutmix=spec.cutmix,
            switch=spec.switch,
            prob=spec.mix_prob,
        )
    return draws


def random_boxes(
    key: Key[ArrayLike, ""],
    count: int,
    canvas: Sequence[int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    tries: int = 10,
) -> Float32[ArrayLike, "{count} 4"]:
    """Draws the boxes of random resized crops (after torchvision).

    Area is uniform, aspect log-uniform; the first of the tries that fits is taken, else
    the largest centred box whose aspect is allowed. A single try is not repeated but
    clamped to the canvas, as in MAE's linear probing.

    Args:
        key: of this step.
        count: how many boxes.
        canvas: (height, width) in pixels.
        area: lowest and highest share of the canvas.
        aspect: lowest and highest width over height.
        tries: boxes drawn until one fits.
    Returns:
        y, x, height, width in pixels.
    """
    height, width = canvas
    keys = core.stream_keys(key, "area", "aspect", "y", "x")
    low, high = area
    shape = (count, tries)
    pixels = jax.random.uniform(keys["area"], shape, minval=low, maxval=high)
    pixels = pixels * (height * width)
    low, high = (math.log(bound) for bound in aspect)
    ratio = jnp.exp(jax.random.uniform(keys["aspect"], shape, minval=low, maxval=high))
    w = jnp.round(jnp.sqrt(pixels * ratio))
    h = jnp.round(jnp.sqrt(pixels / ratio))
    if tries == 1:
        w, h = jnp.clip(w, 1, width), jnp.clip(h, 1, height)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    w, h = (jnp.take_along_axis(side, first, axis=1)[:, 0] for side in (w, h))
    # A place is drawn for the chosen try only, which is as good as one for each.
    y = jnp.floor(jax.random.uniform(keys["y"], (count,)) * (height - h + 1))
    x = jnp.floor(jax.random.uniform(keys["x"], (count,)) * (width - w + 1))
    boxes = jnp.stack([y, x, h, w], axis=1)  # [B, 4]
    fallback = jnp.array(largest_box(canvas, *aspect), jnp.float32)[None]
    return jnp.where(fits.any(axis=1, keepdims=True), boxes, fallback)


def largest_box(
    canvas: Sequence[int], low: float, high: float
) -> tuple[int, int, int, int]:
    """Returns y, x, height, width of the largest centred box of whole pixels.

    Its aspect, width over height, lies in [low, high].
    """
    height, width = canvas
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_boxes(
    count: int, canvas: Sequence[int], image_size: tuple[int, int]
) -> Float32[ArrayLike, "{count} 4"]:
    """Repeats the largest centred box with the aspect of `image_size`."""
    scale = min(have / want for have, want in zip(canvas, image_size, strict=True))
    sides = [want * scale for want in image_size]
    starts = [(have - side) / 2 for have, side in zip(canvas, sides, strict=True)]
    return jnp.tile(jnp.array([[*starts, *sides]], jnp.float32), (count, 1))


@jax.named_scope("augment")
def prepare(
    batch: Mapping[str, ArrayLike], draws: Mapping[str, ArrayLike], spec: Spec
) -> dict[str, ArrayLike]:
    """Augments and normalises a batch, as the first line of every stage's loss.

    Idempotent, as `core.Stage.augment` has to be: an image that arrives in floating
    point is not cropped to erased once more, and where a `target` arrives nothing is
    mixed. What `draws` lacks is not done.

    Args:
        batch: `image` [B, H, W, c] uint8 canvas (or float), perhaps `label`, and
            perhaps `crop` [B, 4] (y, x, height, width in canvas pixels), outside of
            which the canvas may hold anything. With `image_size` [B, 2] as well, the
            picture's height and width from the canvas's top left corner, it is resized
            and then cropped (evaluation), else cropped and then resized (training).
        draws: of `draw`, or the very numbers that a reference used.
        spec: the sizes and numbers to use.
    Returns:
        The batch with `image` [B, *image_size, c] float32, normalised, and, given
        labels and classes, the smoothed and mixed `target` [B, C].
    """
    batch = dict(batch)
    image = batch["image"]
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = frame(batch, draws, spec)
        if "ra_op" in draws:
            image = randaugment.apply(image, draws, fill(image, spec))
        if "jitter_order" in draws:
            image = colour.apply(image, draws)
        image = normalise(image, spec.mean, spec.std)
        if "erase_box" in draws:
            image = erase.apply(image, draws)
    image = image.astype(jnp.float32)
    batch.pop("crop", None)
    if "target" not in batch and "label" in batch and spec.classes:
        target = mixup.smooth_one_hot(batch["label"], spec.classes, spec.smoothing)
        if "mix_lam" in draws:
            image, target = mixup.mix(image, target, draws)
        batch["target"] = target
    return {**batch, "image": image}


def frame(
    batch: Mapping[str, ArrayLike], draws: Mapping[str, ArrayLike], spec: Spec
) -> Float32[ArrayLike, "B h w c"]:
    """Crops, resizes and flips the uint8 canvases; whole grey levels 0..255 leave."""
    image, flip = batch["image"], draws.get("flip")
    boxes, within = batch.get("crop", draws.get("crop")), None
    canvas = image.shape[1:3]
    if "crop" in batch and "image_size" in batch:
        within = jnp.pad(batch["image_size"], ((0, 0), (2, 0)))
    if boxes is None and canvas != spec.image_size:
        boxes = centre_boxes(len(image), canvas, spec.image_size)
        within = jnp.tile(jnp.array([[0, 0, *canvas]]), (len(image), 1))
    if boxes is not None:
        return resize.crop_resize(
            image, boxes, spec.image_size, flip=flip, within=within
        )
    image = image.astype(jnp.float32)
    if flip is not None:
        image = jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)
    return image


def fill(image: Float[ArrayLike, "B H W c"], spec: Spec) -> Float32[ArrayLike, " c"]:
    """Returns the data set's mean in whole grey levels, the colour outside an image."""
    mean = [min(255, round(255 * value)) for value in spec.mean]
    return jnp.broadcast_to(jnp.array(mean, jnp.float32), image.shape[-1:])


def normalise(
    image: Float[ArrayLike, "B H W c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[ArrayLike, "B H W c"]:
    """Normalises levels of 0..255; `mean` and `std` are those of levels in 0..1."""
    mean, std = (jnp.array(value, jnp.float32) for value in (mean, std))
    return (image / 255 - mean[None, None, None]) / std[None, None, None]
