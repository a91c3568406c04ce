# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What an autoencoder guesses: `g2sd reconstruct IMAGE… --workdir=DIR --out=FILE.png`.

The original, what is seen of it, and the guess, one picture a column.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from matplotlib import figure

from g2sd_jax import cli, core, metrics
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction
from g2sd_jax.tools import finished, predict

HIDDEN = (0.55, 0.65, 0.85)  # Colour of a patch that is not seen.
EXPLAINED = {
    "normalised": "trained on patches normalised by their own mean and variance; those "
    "of the true patches are put back to draw the guess",
    "raw": "trained on raw pixels; the guess is drawn as it is",
}


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("reconstruct")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--out", required=True, help="FILE.png")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--mask_ratio", type=float, help="default: the config's")
    parser.add_argument(
        "--target", default="", help="normalised or raw, if the weights do not say"
    )
    args = finished.parse(parser, argv)
    target = target_of(args.finished, args.target)
    ((batch, _),) = predict.batches(args.finished, args.images, whole=True)
    shown = reconstruct(args.finished, batch, target, args.seed, args.mask_ratio)
    draw(shown).savefig(args.out, dpi=150)
    metrics.say(f"{args.out}: {args.finished.source} was {EXPLAINED[target]}.")
    return 0


def target_of(model: finished.Finished, given: str = "") -> str:
    """Which pixels the autoencoder was asked for; refuses to guess."""
    if "decoder_pred" not in model.variables["params"]:
        raise ValueError(
            f"{model.source} is a run of stage {model.config.stage} and predicts no "
            "pixels; name a pretrain or dmae_distill run, or a file with a decoder."
        )
    trained = model.describe.get("target")
    if given:
        core.one_of("--target", given, reconstruction.TARGETS)
    if trained and given and trained != given:
        raise ValueError(
            f"--target={given}, but {model.source} was trained on {trained} pixels."
        )
    if not (trained or given):
        raise ValueError(
            f"{model.source} does not say which pixels it was trained on; add "
            "--target=normalised (mae_pretrain files) or --target=raw (mae_visualize)."
        )
    return trained or given


def reconstruct(
    model: finished.Finished, batch, target: str, seed=0, mask_ratio=None
) -> dict[str, np.ndarray]:
    """{title: [B, H, W, C] in 0..1}: original, visible (NaN where hidden), guess.

    Args:
        model: an autoencoder.
        batch: host batch with `image`.
        target: normalised or raw, of `target_of`.
        seed: of the masks.
        mask_ratio: share of hidden patches; None takes the config's.
    """
    module = model.model()
    count = module.grid[0] * module.grid[1]
    ratio = model.config.mask_ratio if mask_ratio is None else mask_ratio
    patches.check_mask_ratio(ratio, count)
    image = augment.prepare(batch, {}, model.spec)["image"]
    key = core.stream_keys(jax.random.key(seed), "report")["report"]
    masking = patches.mask(jax.random.uniform(key, (len(image), count)), ratio)
    guess = jax.jit(module.apply)(model.variables, image, masking).pixels
    truth = patches.patchify(image, module.patch)  # [B, N, P]
    if target == "normalised":
        guess = denormalise(guess, truth)
    removed = masking.removed[..., None]
    shown = {
        "original": truth,
        "visible": np.where(removed, np.nan, truth),
        "reconstruction": np.where(removed, guess, truth),
    }
    pixels = lambda x: np.asarray(patches.unpatchify(x, module.patch, module.grid))
    mean, std = (np.asarray(model.config.data[name]) for name in ("mean", "std"))
    return {name: np.clip(pixels(x) * std + mean, 0, 1) for name, x in shown.items()}


def denormalise(guess: jax.Array, truth: jax.Array) -> jax.Array:
    """Undoes `masked.normalise_patches` with the statistics of the true patches."""
    variance = truth.var(axis=-1, keepdims=True, ddof=1)
    return guess * np.sqrt(variance + 1e-6) + truth.mean(axis=-1, keepdims=True)


def draw(shown: Mapping[str, np.ndarray]) -> figure.Figure:
    """One line of images per title; what is not known (NaN) is blue."""
    count = len(next(iter(shown.values())))
    size = (1.1 * count + 0.6, 1.2 * len(shown))
    sheet = figure.Figure(figsize=size, layout="constrained")
    axes = sheet.subplots(len(shown), count, squeeze=False)
    for line, (title, images) in zip(axes, shown.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            hidden = np.isnan(image).any(axis=-1, keepdims=True)
            colour = np.broadcast_to(image, (*image.shape[:2], 3))
            axis.imshow(np.where(hidden, HIDDEN, colour))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=9)
    return sheet
