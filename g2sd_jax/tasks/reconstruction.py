# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Masked reconstruction: what the stages that see a part of an image share."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from g2sd_jax import core, errors
from g2sd_jax.losses import masked
from g2sd_jax.models import mae, vit
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import first_batch
from g2sd_jax.weights import agreement, graft, loading

TARGETS = ("normalised", "raw")
TEACHER_ERROR = "teacher/reconstruction_error"  # As `measure` returns it.


def reads(config: ConfigDict) -> tuple[str, ...]:
    """The batch keys beside `image`: labels only where neighbours vote on them."""
    return ("label",) if config.monitor.neighbours else ()


def picture(config: ConfigDict) -> Callable[[Mapping, Sequence[str]], core.Picture]:
    """The `Stage.picture`: an image, called by its class where it has one."""
    return first_batch.class_picture(config.augment.smoothing)


def summarise(config: ConfigDict) -> Callable[..., list[str]]:
    """The `Stage.summarise`: the histogram of the classes where there are labels."""
    return functools.partial(first_batch.class_lines, config)


def draw(key: jax.Array, batch: Mapping, config: ConfigDict) -> dict[str, jax.Array]:
    """Mask noise [B, N] float32 and the augmentation's draws."""
    rows, columns = vit.grid(config.model)
    keys = core.stream_keys(key, "mask", "augment")
    # Float32 always: in bfloat16 two patches would often draw the same number.
    noise = jax.random.uniform(keys["mask"], (len(batch["image"]), rows * columns))
    spec = augment.spec(config, train=True)
    return {"noise": noise, **augment.draw(keys["augment"], batch, spec)}


def pixels(image: jax.Array, patch: int, target: str) -> jax.Array:
    """The target [B, N, P] of an autoencoder: normalised or raw patches.

    Args:
        image: [B, H, W, C] normalised by the data set's mean and std.
        patch: side in pixels.
        target: normalised (each patch by its own mean and variance) or raw.
    """
    errors.one_of("config.target or config.teacher.target", target, TARGETS)
    target_patches = patches.patchify(image, patch)
    if target == "normalised":
        target_patches = masked.normalise_patches(target_patches)
    return target_patches


def measure(
    model: mae.Mae,
    variables: Mapping,
    batch: Mapping,
    config: ConfigDict,
    target: str,
    convert: Callable[[jax.Array], jax.Array] = core.identity,
) -> jax.Array:
    """The reconstruction error of a complete autoencoder on one batch, un-augmented.

    Around 1 for normalised patches is what a decoder that knows nothing reaches.

    Args:
        model: the autoencoder.
        variables: all of its own.
        batch: as the source gives it.
        config: the recipe.
        target: one of `TARGETS`.
        convert: images as the recipe normalises them -> as the model does.
    """
    spec = augment.spec(config, train=False)
    image = convert(augment.prepare(batch, {}, spec)["image"])
    # Always the same mask: two teachers are measured alike, and no seed recompiles.
    count = len(image), model.grid[0] * model.grid[1]
    noise = jax.random.uniform(jax.random.key(0), count)
    masking = patches.mask(noise, config.mask_ratio)
    out = model.apply(variables, image, masking)
    truth = pixels(image, model.patch, target)
    return masked.masked_pixel_loss(out.pixels, truth, masking.removed)


def teacher_chance(config: ConfigDict) -> dict[str, core.Chance]:
    """How the teacher's reconstruction error tells that its decoder knows nothing."""

    def warning(error):
        return (
            f"the teacher reconstructs with an error of {error:.2f} on "
            f"{config.teacher.target} pixels, and about 1 is what a decoder reaches "
            f"that knows nothing: {config.teacher.checkpoint} has no trained decoder, "
            "or was trained on other pixels than config.teacher.target says, or saw "
            "pictures of another config.data.mean and std."
        )

    return {TEACHER_ERROR: core.Chance(1.0, warning)}


def check_grids(config: ConfigDict, teacher: mae.Mae) -> None:
    """Refuses a teacher that would see other patches, and an impossible mask."""
    grid = vit.grid(config.model)
    if grid != teacher.grid:
        raise ValueError(
            f"config.model has a {grid} grid of patches, config.teacher.model "
            f"{teacher.grid}; both must see the same patches: make image_size and "
            "patch agree."
        )
    check_masking(config, grid)


def check_masking(config: ConfigDict, grid: tuple[int, int]) -> None:
    """Refuses a mask that leaves nothing, and pictures that are mixed."""
    patches.check_mask_ratio(config.mask_ratio, grid[0] * grid[1])
    if config.augment.mixup or config.augment.cutmix:
        raise ValueError(
            f"config.augment.mixup={config.augment.mixup} and cutmix="
            f"{config.augment.cutmix}: masked stages see one picture at a time; set "
            "both to 0.0."
        )


def warm_start(
    variables: Mapping, config: ConfigDict, dropped: Sequence[str] = ()
) -> Mapping:
    """Continues from `config.init_from`, a run or file of the same architecture.

    Args:
        variables: as initialised.
        config: the recipe.
        dropped: regexes of tensors that such a file may have and the stage has not.
    """
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.check_normalisation(weights, config, "config.init_from")
    agreement.check_heads(weights, config.model, "config.model")
    grid = vit.grid(config.model)
    return graft.onto(variables, weights, grid=grid, dropped=dropped)
