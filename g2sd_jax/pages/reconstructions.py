# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures, their visible patches, and an autoencoder's reconstruction."""

from collections.abc import Mapping

import jax
import numpy as np
from matplotlib import figure

from g2sd_jax import core, errors, kinds
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction

HIDDEN = (0.55, 0.65, 0.85)  # Colour of a hidden patch.
EXPLAINED = {
    "normalised": "trained on patches normalised by their own mean and variance; those "
    "of the true patches are put back to draw the guess",
    "raw": "trained on raw pixels; the guess is drawn as it is",
}


def target_of(model: kinds.Finished, requested: str = "") -> str:
    """The pixels an autoencoder was trained on: as described, or as requested.

    Args:
        model: an autoencoder.
        requested: normalised, raw or "", for weights without a description.
    Raises:
        ValueError: it predicts no pixels, the two differ, or neither says which.
    """
    if "decoder_pred" not in model.variables["params"]:
        raise ValueError(
            f"{model.source} is a run of stage {model.config.stage} and predicts no "
            "pixels; name a pretrain or dmae_distill run, or a file with a decoder."
        )
    trained = model.describe.get("target")
    if requested:
        errors.one_of("--target", requested, reconstruction.TARGETS)
    if trained and requested and trained != requested:
        raise ValueError(
            f"--target={requested}, but {model.source} was trained on {trained} pixels."
        )
    if not (trained or requested):
        raise ValueError(
            f"{model.source} does not say which pixels it was trained on; add "
            "--target=normalised (mae_pretrain files) or --target=raw (mae_visualize)."
        )
    return trained or requested


def reconstruct(
    model: kinds.Finished,
    batch: Mapping[str, np.ndarray],
    target: str,
    seed: int = 0,
    mask_ratio: float | None = None,
) -> dict[str, np.ndarray]:
    """Hides patches of pictures and predicts them.

    Args:
        model: an autoencoder.
        batch: host batch with `image`.
        target: normalised or raw, of `target_of`.
        seed: of the masks.
        mask_ratio: share of hidden patches; None takes the config's.
    Returns:
        {title: [B, H, W, C] in 0..1}: original, visible (NaN where hidden) and
        reconstruction.
    """
    module = model.model()
    count = module.grid[0] * module.grid[1]
    ratio = model.config.mask_ratio if mask_ratio is None else mask_ratio
    patches.check_mask_ratio(ratio, count)
    image = augment.prepare(batch, {}, model.spec)["image"]
    key = core.stream_keys(jax.random.key(seed), "report")["report"]
    masking = patches.mask(jax.random.uniform(key, (len(image), count)), ratio)
    predicted = jax.jit(module.apply)(model.variables, image, masking).pixels
    truth = patches.patchify(image, module.patch)  # [B, N, P]
    if target == "normalised":
        predicted = denormalise(predicted, truth)
    removed = masking.removed[..., None]
    patches_of = {
        "original": truth,
        "visible": np.where(removed, np.nan, truth),
        "reconstruction": np.where(removed, predicted, truth),
    }
    pixels = lambda x: np.asarray(patches.unpatchify(x, module.patch, module.grid))
    mean, std = (np.asarray(model.config.data[name]) for name in ("mean", "std"))
    return {
        title: np.clip(pixels(x) * std + mean, 0, 1) for title, x in patches_of.items()
    }


def denormalise(predicted: jax.Array, truth: jax.Array) -> jax.Array:
    """Undoes `masked.normalise_patches` with the statistics of the true patches."""
    variance = truth.var(axis=-1, keepdims=True, ddof=1)
    return predicted * np.sqrt(variance + 1e-6) + truth.mean(axis=-1, keepdims=True)


def draw(pictures: Mapping[str, np.ndarray]) -> figure.Figure:
    """Draws one line of pictures per title; hidden pixels (NaN) are blue.

    Of more than three channels the first three are drawn, and a line says so; of two
    the first, in grey.
    """
    count = len(next(iter(pictures.values())))
    size = (1.1 * count + 0.6, 1.2 * len(pictures))
    sheet = figure.Figure(figsize=size, layout="constrained")
    axes = sheet.subplots(len(pictures), count, squeeze=False)
    for line, (title, images) in zip(axes, pictures.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            hidden = np.isnan(image).any(axis=-1, keepdims=True)
            shown = 3 if image.shape[-1] >= 3 else 1
            colour = np.broadcast_to(image[..., :shown], (*image.shape[:2], 3))
            axis.imshow(np.where(hidden, HIDDEN, colour))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=9)
    channels = next(iter(pictures.values())).shape[-1]
    if channels not in (1, 3):
        which = "channels 1 to 3" if channels > 3 else "channel 1"
        sheet.supxlabel(f"{which} of {channels}", fontsize=8)
    return sheet
