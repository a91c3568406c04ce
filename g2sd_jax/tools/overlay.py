# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a segmentor sees in pictures: the classes of their pixels, drawn over them."""

import collections
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from PIL import Image

from g2sd_jax import checkpoint, metrics, palette, summary, workdir
from g2sd_jax.data import files
from g2sd_jax.tasks import sliding
from g2sd_jax.tools import finished

FOLDER = "overlays"  # In the workdir, if no other one is named.
SHARES = "shares.json"
ENDINGS = dict(drawn="overlay.png", labels="labels.png")
SMALLEST = 320  # Pixels of the longer side, below which a drawing is enlarged.


def write(model: finished.Finished, images: Sequence[str], out: str) -> list[dict]:
    """Two files per picture in a folder: its overlay, and its labels as they are.

    Args:
        model: of a segmentor.
        images: files.
        out: the folder, "" for `FOLDER` in the workdir.
    Returns:
        One dict of `image`, `shares` of its pixels by class name, `drawn` and `labels`,
        the files, per picture that can be read; also kept as `SHARES` in the folder.
    """
    out = folder(model, out)
    stems = dict(zip(images, stems_of(images), strict=True))
    names = tuple(model.describe.get("class_names") or ())
    answers = []
    for path, pixels, label_map in label_maps(model, images):
        os.makedirs(out, exist_ok=True)
        found = shares(label_map, names)
        paths = {
            key: os.path.join(out, f"{stems[path]}.{end}")
            for key, end in ENDINGS.items()
        }
        draw(pixels, label_map, found).save(paths["drawn"])
        palette.indexed(label_map).save(paths["labels"])
        told = {name: share for _, name, share in found}
        answers.append(dict(image=path, shares=told, **paths))
    if answers:
        workdir.write_json(os.path.join(out, SHARES), answers)
    return answers


def folder(model: finished.Finished, out: str) -> str:
    """The one that is named, or `FOLDER` in the workdir."""
    if os.path.isfile(out) or out.endswith(".json"):
        raise ValueError(
            f"--out={out} is a file, but what a segmentor sees takes several: name a "
            f"folder; {SHARES} in it holds all shares."
        )
    if out:
        return out
    if os.path.isfile(model.source):
        raise ValueError(
            f"{model.source} is a file: say with --out=FOLDER where the overlays of "
            "the pictures are to be written."
        )
    # A checkpoint's own folder is committed: nothing is written there.
    return os.path.join(checkpoint.split_step(model.source)[0], FOLDER)


def stems_of(images: Sequence[str]) -> list[str]:
    """What each picture is called without folder and ending."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in images]
    stem, count = collections.Counter(stems).most_common(1)[0]
    if count > 1:
        same = [path for path, own in zip(images, stems, strict=True) if own == stem]
        raise ValueError(
            f"{' and '.join(same[:2])} would both be written as {stem}."
            f"{ENDINGS['drawn']}; ask for them one after the other, each with a folder "
            "--out of its own."
        )
    return stems


def label_maps(
    model: finished.Finished, images: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields path, pixels [h, w, C] and their classes [h, w], uint8, of each picture.

    Through the windows of evaluation. One shape of them is compiled: as many at once as
    the first picture has, at most `config.batch`.
    """
    config, evaluator = model.config, model.stage.evaluators["eval"]
    plan, rows = sliding.plan(config), 0
    frozen, ask = model.frozen(evaluator), jax.jit(evaluator.predict)
    variables = jax.device_put(model.variables)
    for path, pixels in files.originals(config, images, metrics.say):
        scene = sliding.Scene({"image": pixels}, plan)
        rows = rows or min(config.batch, len(scene.windows))
        places = list(scene.windows)
        for first in range(0, len(places), rows):
            chosen = places[first : first + rows]
            windows = [scene.windows[place] for place in chosen]
            batch = sliding.padded(windows, rows, plan, config.model.channels)
            outputs = jax.device_get(ask(variables, frozen, batch))
            for place, logits in zip(chosen, outputs["logits"], strict=False):
                scene.add(place, logits)
        yield path, pixels, scene.answer()


def shares(label_map: np.ndarray, names) -> list[tuple[int, str, float]]:
    """(class, its name, share of the pixels), the largest share first."""
    labels, counts = np.unique(label_map, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        (int(labels[k]), summary.name_of(labels[k], names), counts[k] / label_map.size)
        for k in order
    ]


def draw(pixels: np.ndarray, label_map: np.ndarray, found) -> Image.Image:
    """The picture in the colours of its classes, above what they are called."""
    if pixels.shape[-1] < 3:
        pixels = pixels[..., :1].repeat(3, axis=-1)
    image = Image.fromarray(palette.tinted(pixels[..., :3], label_map))
    factor = -(-SMALLEST // max(image.size))
    size = tuple(factor * side for side in image.size)
    image = image.resize(size, Image.Resampling.NEAREST)
    rows = [
        (label, f"{palette.drawable(name, label)} {share:.1%}")
        for label, name, share in found
    ]
    return palette.above(image, palette.legend(rows, image.width))
