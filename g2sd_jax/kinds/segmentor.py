# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentor: names the class of every pixel."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np

from g2sd_jax import kinds, palette, parallel, summary, workdir
from g2sd_jax.data import files
from g2sd_jax.evaluators import sliding
from g2sd_jax.exports import segmentor, weight_files
from g2sd_jax.kinds import overlays
from g2sd_jax.weights import description, loading, parts

FOLDER = "overlays"  # In the workdir, if no other one is named.
SHARES = "shares.json"
MEMBERS = ("", "student.", "teacher.")  # Prefixes; a published distillation has two.
REFUSALS = {
    "timm": "timm has no segmentors; use torch, whose names are those of the authors' "
    "code and of mmsegmentation, or stablehlo",
    "transformers": "its nearest model, BeitForSemanticSegmentation, has no bias of "
    "keys and no sliding windows, and is not written here; use torch, whose names are "
    "those of the authors' code and of mmsegmentation, or stablehlo",
    "onnx": "its converter, jax2onnx, does not take the loop over the blocks for any "
    "number of windows; use stablehlo",
}


def recognises(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict has the classifier of a decode head."""
    return any(f"{prefix}{parts.PIXEL_HEAD}.weight" in arrays for prefix in MEMBERS)


def holds(weights: loading.Weights) -> list[str]:
    """A line on each segmentor of a file, and on the pictures it was trained on."""
    lines = []
    for prefix in MEMBERS:
        arrays = {
            name.removeprefix(prefix): array
            for name, array in weights.arrays.items()
            if name.startswith(prefix)
        }
        member = loading.Weights(weights.source, arrays, weights.describe)
        if member.classes(parts.PIXEL_HEAD) is None:
            continue
        table = arrays.get("backbone.blocks.0.attn.relative_position_bias_table")
        heads = "" if table is None else f", {table.shape[1]} heads"
        lines.append(f"{prefix.rstrip('.') or 'segmentor'}: {member.summary()}{heads}")
    return lines + description.pictures(weights.describe, with_classes=True)


def serves(weights: loading.Weights) -> list[str]:
    """A line on the keys of recipes that take it."""
    return [
        "serves: config.init_from of finetune:task=segmentation and specific_seg; "
        "config.teacher.checkpoint of specific_seg"
    ]


def settings(weights: loading.Weights) -> dict:
    """Its windows, and no auxiliary loss where it has no auxiliary head."""
    if "inference" not in weights.describe:
        return {}
    inference = dict(inference=weights.describe["inference"])
    if any(name.startswith("auxiliary_head.") for name in weights.arrays):
        return inference
    return {**inference, "loss": dict(auxiliary=0.0)}


def module(model: kinds.Finished) -> NoReturn:
    """Refuses: no verb compares or embeds its encoder."""
    raise ValueError(
        f"{model.source} is a segmentor, whose encoder this verb can not see "
        "alone; g2sd evaluate judges it, or name the run its encoder comes "
        "from."
    )


def answers(
    model: kinds.Finished, images: Sequence[str], out: str
) -> list[kinds.Answer]:
    """Draws the classes of pixels over each picture, into the folder `out`."""
    return [
        kinds.Answer(
            row["image"], f"{kinds.most_likely(row['shares'])}; {row['drawn']}"
        )
        for row in write_overlays(model, images, out)
    ]


def write_overlays(
    model: kinds.Finished, images: Sequence[str], out: str
) -> list[dict]:
    """Writes two files per picture: its overlay, and its label map as it is.

    Args:
        model: of a segmentor.
        images: files.
        out: the folder, "" for `FOLDER` in the workdir.
    Returns:
        A dict of `image`, `shares` of its pixels by class name, `drawn` and `labels`,
        the files, for each picture that can be read; all also as `SHARES` in the
        folder.
    """
    folder = overlays.folder_of(model.source, out, FOLDER, SHARES)
    stems = overlays.stems(images)
    names = tuple(model.describe.get("class_names") or ())
    rows = []
    for path, pixels, label_map in label_maps(model, images):
        os.makedirs(folder, exist_ok=True)
        shares = overlays.shares(label_map)
        named = {summary.name_of(label, names): share for label, share in shares}
        row = dict(image=path, shares=named)
        for key, ending in overlays.ENDINGS.items():
            row[key] = os.path.join(folder, f"{stems[path]}.{ending}")
        overlays.draw(pixels, label_map, names).save(row["drawn"])
        palette.to_indexed(label_map).save(row["labels"])
        rows.append(row)
    if rows:
        workdir.write_json(os.path.join(folder, SHARES), rows)
    return rows


def label_maps(
    model: kinds.Finished, images: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields path, pixels [h, w, C] and their classes [h, w], uint8, of each picture.

    Through the windows of evaluation. One shape of them is compiled: as many at once as
    the first picture has, at most `config.batch`.
    """
    config, evaluator = model.config, model.evaluator
    plan, rows = sliding.plan(config), 0
    frozen, apply = model.frozen(evaluator), jax.jit(evaluator.predict)
    variables = jax.device_put(model.variables)
    for path, pixels in files.originals(config, images, parallel.print_once):
        scene = sliding.Scene({"image": pixels}, plan)
        rows = rows or min(config.batch, len(scene.windows))
        places = list(scene.windows)
        for first in range(0, len(places), rows):
            chosen = places[first : first + rows]
            windows = [scene.windows[place] for place in chosen]
            batch = sliding.padded(windows, rows, plan, config.model.channels)
            outputs = jax.device_get(apply(variables, frozen, batch))
            for place, logits in zip(chosen, outputs["logits"], strict=False):
                scene.add(place, logits)
        yield path, pixels, scene.answer()


def prepare(
    weights: loading.Weights, options: kinds.ExportOptions
) -> segmentor.Segmentor:
    """Completes the weights of a segmentor by its preprocessing and its windows."""
    for name in ("readout", "mean", "std"):
        if getattr(options, name):
            raise ValueError(
                f"--{name}={getattr(options, name)} is not for a segmentor, which says "
                "itself how its pictures were normalised, and has one answer."
            )
    describe, config = dict(weights.describe), options.config()
    if config is not None:
        describe["inference"] = config.inference.to_dict()
    if "inference" not in describe:
        raise ValueError(
            f"--workdir={weights.source!r} is a segmentor that does not say which "
            "blocks are tapped, nor how pictures are cut: start a run from it (config."
            "init_from) and export that run's workdir."
        )
    return segmentor.Segmentor(
        source=weights.source,
        arrays=weights.arrays,
        describe=describe,
        preprocessing=segmentor.preprocessing(describe),
    )


KIND = kinds.Kind(
    recognises=recognises,
    holds=holds,
    serves=serves,
    module=module,
    answers=answers,
    prepare=prepare,
    formats={
        "safetensors": weight_files.safetensors_file,
        "torch": segmentor.torch_file,
        "stablehlo": segmentor.stablehlo,
    },
    refusals=REFUSALS,
    recipe="finetune:task=segmentation",
    settings=settings,
    pictures=(
        kinds.Pictures(
            title="What {name} learned from first",
            pattern=summary.PICTURE,
            alt="pictures and their labels",
            source="{file}, which the run left at its start.",
        ),
        kinds.Pictures(
            title="What {name} sees",
            pattern=f"{FOLDER}/*.{overlays.ENDINGS['drawn']}",
            alt="an overlay",
            source="{file}.",
            most=8,
        ),
    ),
)
