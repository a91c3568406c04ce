# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a weight file holds, and what it can be used for."""

import hashlib
import os
from collections.abc import Mapping

import numpy as np

from g2sd_jax.weights import architecture, catalogue, loading

KEY = "g2sd inspect"
SEGMENTS = (
    "serves: config.init_from of finetune:task=segmentation and specific_seg; "
    "config.teacher.checkpoint of specific_seg"
)


def lines(path: str) -> list[str]:
    """The description of a file, or of a directory of timm or transformers.

    Raises:
        ValueError: it can not be read, or holds no vision transformer.
    """
    weights = loading.read(path, KEY)
    arrays, told = weights.arrays, weights.describe
    segments = segmentors_of(weights)
    count = sum(array.size for array in arrays.values())
    found = [f"{path}: {count:,} numbers in {len(arrays)} arrays"]
    found += published(path)
    if segments:
        found += [f"{who}: {what}" for who, what in segments.items()]
        found += pictures(told, named=True)
        uses = [SEGMENTS]
    else:
        shape = architecture.infer(arrays, told, path)
        found += holds(shape, told)
        found += pictures(told, named=shape.classes > 0)
        uses = serves(shape)
        if shape.unknown:
            some = ", ".join(shape.unknown[:4])
            found.append(f"unknown here: {some} ({len(shape.unknown)} in all)")
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        found.append(f"NOT FINITE: {', '.join(broken[:4])} ({len(broken)} in all)")
    return found + uses


def segmentors_of(weights: loading.Weights) -> dict[str, str]:
    """{what it is: what it holds}; a published distillation's file holds two."""
    found = {}
    for prefix in ("", "student.", "teacher."):
        mine = [name for name in weights.arrays if name.startswith(prefix)]
        own = {name.removeprefix(prefix): weights.arrays[name] for name in mine}
        if f"{loading.CONV_SEG}.weight" not in own:
            continue
        table = own.get("backbone.blocks.0.attn.relative_position_bias_table")
        heads = "" if table is None else f", {table.shape[1]} heads"
        told = loading.Weights(weights.source, own, weights.describe).summary()
        found[prefix.rstrip(".") or "segmentor"] = f"{told}{heads}"
    return found


def published(path: str) -> list[str]:
    """Which published file this is, by its MD5 or its name."""
    if not os.path.isfile(path):
        return []
    digest = md5(path)
    found = [f"md5: {digest}"]
    by_name, by_md5 = catalogue.named(path), catalogue.of_md5(digest)
    file = by_md5 or by_name
    if by_md5:
        found.append(f"published as {file.name} (by its MD5): {said(file)}")
    elif by_name and by_name.md5:
        found.append(
            f"called like the published {file.name}, whose MD5 begins with {file.md5}: "
            "this is another file, or damaged"
        )
    elif by_name:
        found.append(f"called like the published {file.name}: {said(file)}")
    return found


def said(file: catalogue.Published) -> str:
    """What is known of a published file."""
    pixels = f", trained on {file.target} pixels" if file.target else ""
    return f"{catalogue.HOLDS[file.holds]}{pixels}; licence {file.licence}"


def md5(path: str) -> str:
    """The file's MD5, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def holds(shape: architecture.Architecture, told: Mapping) -> list[str]:
    """The parts of the network."""
    heads = f"{shape.heads} heads" if shape.heads else "heads not told by shapes"
    found = [
        f"encoder: {shape.size}: {shape.depth} blocks, {shape.width} wide, {heads}, "
        f"patches of {shape.patch}x{shape.patch}x{shape.channels}"
    ]
    if shape.grid:
        rows, columns = shape.grid
        height, width = shape.image_size
        found[0] += f", a {rows}x{columns} grid of them ({height}x{width} pixels)"
    if shape.decoder:
        width, depth, heads = shape.decoder
        pixels = "predicts pixels" if shape.pixel_head else "no pixel head"
        heads = f"{heads} heads" if heads else "heads not told by shapes"
        found.append(f"decoder: {depth} blocks, {width} wide, {heads}, {pixels}")
        if shape.pixel_head and "decoderfeature_pred" in shape.extra:
            found.append("its pixel head was never trained, as in G2SD's first stage")
    else:
        found.append("decoder: none")
    if shape.classes:
        pool = {"avg": "mean of the patches", "cls": "class token"}[shape.pool]
        second = ", and a distillation token with its own" if shape.dist_token else ""
        found.append(f"head: {shape.classes} classes, on the {pool}{second}")
    else:
        found.append("head: none")
    if shape.extra:
        found.append(f"heads of a distillation: {', '.join(shape.extra)}")
    if shape.decoder:
        found.append(f"pixels it was trained on: {told.get('target', 'not told')}")
    return found


def pictures(told: Mapping, named: bool) -> list[str]:
    """How its pictures were normalised, and what the classes are called."""
    spelled = [
        f"{name} {', '.join(map(str, told[name]))}"
        for name in ("mean", "std")
        if name in told
    ]
    found = [f"pictures normalised by: {'; '.join(spelled) or 'not told'}"]
    names = list(told.get("class_names") or ())
    if named and names:
        more = ", …" if len(names) > 5 else ""
        found.append(f"classes: {', '.join(map(str, names[:5]))}{more}")
    return found


def serves(shape: architecture.Architecture) -> list[str]:
    """What it can be used for, and the flags that fit a recipe to it."""
    if shape.unknown:
        return ["serves: nothing here, while it holds what is unknown"]
    teaches, uses = ["dmae_distill"], ["config.init_from of finetune and specific_cls"]
    if shape.classes:
        teaches = ["specific_cls"]
        uses.append("g2sd export")
    elif shape.pixel_head and "decoderfeature_pred" not in shape.extra:
        teaches.insert(0, "generic_distill")
    if shape.pool == "cls":  # A mean of patches comes without the encoder's last norm.
        uses.append("config.encoder.checkpoint of linprobe")
    uses.insert(0, f"config.teacher.checkpoint of {' and '.join(teaches)}")
    encoder = shape._replace(decoder=None, classes=0, dist_token=False)
    return [
        f"serves: {'; '.join(uses)}",
        f"as teacher: {architecture.flags(shape, 'config.teacher.model')}",
        f"as encoder: {architecture.flags(encoder)}",
    ]
