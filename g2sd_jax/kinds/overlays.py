# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Where drawings go; pictures tinted by the classes of their pixels, with a legend."""

import collections
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from g2sd_jax import checkpoint, palette, summary

ENDINGS = dict(drawn="overlay.png", labels="labels.png")
SMALLEST = 320  # Pixels of the longer side, below which a drawing is enlarged.


def stems(images: Sequence[str]) -> dict[str, str]:
    """{file: its name without folder and ending}; refuses two files of one name."""
    stem_of = {path: os.path.splitext(os.path.basename(path))[0] for path in images}
    all_stems = [stem_of[path] for path in images]
    stem, count = collections.Counter(all_stems).most_common(1)[0]
    if count > 1:
        same = [path for path in images if stem_of[path] == stem]
        raise ValueError(
            f"{' and '.join(same[:2])} would both be written as {stem}."
            f"{ENDINGS['drawn']}; ask for them one after the other, each with a folder "
            "--out of its own."
        )
    return stem_of


def folder_of(source: str, out: str, default: str, file: str) -> str:
    """The folder that drawings are written to.

    Args:
        source: of the model, a workdir or a file.
        out: as asked for, or "".
        default: the name of the folder in a workdir.
        file: its name in the folder, which lists what is in all drawings.
    """
    if os.path.isfile(out) or out.endswith(".json"):
        raise ValueError(
            f"--out={out} is a file, but what is drawn takes several: name a folder; "
            f"{file} in it lists what is in all of them."
        )
    if out:
        return out
    if os.path.isfile(source):
        raise ValueError(
            f"{source} is a file: say with --out=FOLDER where the drawings of the "
            "pictures are to be written."
        )
    # A checkpoint's own folder is committed: nothing is written there.
    return os.path.join(checkpoint.split_step(source)[0], default)


def shares(label_map: np.ndarray) -> list[tuple[int, float]]:
    """(class, share of the pixels) of a label map [H, W], the largest share first."""
    labels, counts = np.unique(label_map, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(labels[k]), counts[k] / label_map.size) for k in order]


def draw(
    pixels: np.ndarray, label_map: np.ndarray, names: Sequence[str]
) -> Image.Image:
    """Draws a picture in the colours of its classes, above their names and shares.

    Args:
        pixels: [H, W, C] uint8.
        label_map: [H, W] uint8.
        names: of the classes; () shows their numbers.
    """
    if pixels.shape[-1] < 3:
        pixels = pixels[..., :1].repeat(3, axis=-1)
    image = Image.fromarray(palette.tint(pixels[..., :3], label_map))
    factor = -(-SMALLEST // max(image.size))
    size = tuple(factor * side for side in image.size)
    image = image.resize(size, Image.Resampling.NEAREST)
    rows = []
    for label, share in shares(label_map):
        name = palette.drawable_name(summary.name_of(label, names), label)
        rows.append((label, f"{name} {share:.1%}"))
    return palette.stack_vertically(image, palette.legend(rows, image.width))
