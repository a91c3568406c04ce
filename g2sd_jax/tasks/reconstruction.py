# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Seeing a part of an image and guessing the rest: what the masked stages share."""

import jax

from g2sd_jax import core
from g2sd_jax.losses import masked
from g2sd_jax.models import vit
from g2sd_jax.ops import augment, patches
from g2sd_jax.weights import agreement, graft, loading

TARGETS = ("normalised", "raw")


def draw(key, batch, config) -> dict:
    """Mask noise [B, N] float32 and the augmentation's draws."""
    rows, columns = vit.grid(config.model)
    keys = core.stream_keys(key, "mask", "augment")
    # Float32 always: in bfloat16 two patches would often draw the same number.
    noise = jax.random.uniform(keys["mask"], (len(batch["image"]), rows * columns))
    spec = augment.spec(config, train=True)
    return {"noise": noise, **augment.draw(keys["augment"], batch, spec)}


def pixels(image, patch: int, target: str):
    """[B, N, P] what an autoencoder is asked for: normalised or raw patches.

    Args:
        image: [B, H, W, C] normalised by the data set's mean and std.
        patch: side in pixels.
        target: normalised (each patch by its own mean and variance) or raw.
    """
    core.one_of("config.target or config.teacher.target", target, TARGETS)
    target_patches = patches.patchify(image, patch)
    if target == "normalised":
        target_patches = masked.normalise_patches(target_patches)
    return target_patches


def measure(model, variables, batch, config, target: str):
    """The reconstruction error of a whole autoencoder on one batch, un-augmented.

    Around 1 for normalised patches is what a decoder that knows nothing reaches.
    """
    spec = augment.spec(config, train=False)
    image = augment.prepare(batch, {}, spec)["image"]
    # Always the same mask: two teachers are measured alike, and no seed recompiles.
    count = len(image), model.grid[0] * model.grid[1]
    noise = jax.random.uniform(jax.random.key(0), count)
    masking = patches.mask(noise, config.mask_ratio)
    out = model.apply(variables, image, masking)
    truth = pixels(image, model.patch, target)
    return masked.masked_pixel_loss(out.pixels, truth, masking.removed)


def check_grids(config, teacher) -> None:
    """Refuses a teacher that would see other patches, and an impossible mask."""
    grid = vit.grid(config.model)
    if grid != teacher.grid:
        raise ValueError(
            f"config.model has a {grid} grid of patches, config.teacher.model "
            f"{teacher.grid}; both must see the same patches: make image_size and "
            "patch agree."
        )
    check_masking(config, grid)


def check_masking(config, grid) -> None:
    """Refuses a mask that leaves nothing, and pictures that are mixed."""
    patches.check_mask_ratio(config.mask_ratio, grid[0] * grid[1])
    if config.augment.mixup or config.augment.cutmix:
        raise ValueError(
            f"config.augment.mixup={config.augment.mixup} and cutmix="
            f"{config.augment.cutmix}: masked stages see one picture at a time; set "
            "both to 0.0."
        )


def warm_start(variables, config, dropped=()):
    """Continues from `config.init_from`, a run or file of the same architecture.

    `dropped` are regexes of what such a file may hold that this stage does not build.
    """
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.pictures(weights, config, "config.init_from")
    agreement.heads(weights, config.model, "config.model")
    grid = vit.grid(config.model)
    return graft.onto(variables, weights, grid=grid, dropped=dropped)
