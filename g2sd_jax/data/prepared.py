# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a folder that `g2sd prepare` wrote: packs of shrunk pictures and their labels.

The records are JPEG files, or binary PPM and PGM files, which are pixels behind a line
of text: those are mapped into memory and never decoded.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import json_files
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, packs, pipeline, reading

MANIFEST = "manifest.json"  # Written last: where it is, all packs are.
UNFINISHED = "unfinished.json"
LAYOUT = 1
AGAIN = "run the same `g2sd prepare` again, which makes what is missing."

frames = pipeline.Training  # The layout of a training batch.


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """One split of the copy at `config.data.path`, decoded on demand."""
    return pipeline.dataset(config, list_files(config, split), split)


def list_files(config: ConfigDict, split: str) -> encoded.Encoded:
    """The pictures of one split, of which the indexes alone are read."""
    folder = Path(config.data.path)
    manifest = read_manifest(folder)
    size, wanted = manifest["job"]["size"], min(config.model.image_size)
    if size < wanted:
        raise ValueError(
            f"config.data.path={str(folder)!r} was prepared with --size={size}, less "
            f"than config.model.image_size={tuple(config.model.image_size)}; prepare "
            f"it again with --size={wanted} or more, which enlarges no picture."
        )
    files = open_split(folder, manifest, split)
    if files.labels is None and config.data.classes:
        raise ValueError(
            f"{files.origin} has no labels, but config.data.classes="
            f"{config.data.classes}; pictures alone need --config.data.classes=0."
        )
    return files


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of pictures of a split, and of their classes."""
    files = list_files(config, split)
    return files.count, len(files.classes)


def read_manifest(folder: Path) -> dict:
    """Reads the manifest of a finished copy; refuses anything else."""
    path = folder / MANIFEST
    if (folder / UNFINISHED).exists() and not path.exists():
        raise ValueError(
            f"config.data.path={str(folder)!r} is a copy that is not finished; run the "
            "same `g2sd prepare` again, it goes on where it was."
        )
    try:
        manifest = json_files.read(path, "prepare the set again")
    except FileNotFoundError:
        raise ValueError(
            f"config.data.path={str(folder)!r} has no {MANIFEST}; config.data.source="
            "prepared reads a folder that `g2sd prepare --out=` wrote."
        ) from None
    if manifest.get("layout") != LAYOUT:
        raise ValueError(
            f"{path} has layout {manifest.get('layout')!r}, but this version reads "
            f"{LAYOUT}; prepare the set again."
        )
    return manifest


def open_split(folder: Path, manifest: dict, split: str) -> encoded.Encoded:
    """Reads the indexes, and compares every pack's size and digest with the manifest.

    The records themselves are only read by `verify`.
    """
    splits = manifest["splits"]
    if split not in splits:
        raise ValueError(
            f"{folder} has no split {split!r}; its splits are {', '.join(splits)}. Set "
            "config.data.train_split and config.data.eval_split to them."
        )
    entry = splits[split]
    files = check_packs(folder, entry)
    indexes = [packs.read_index(file) for file in files]
    mapped = manifest["job"]["format"] == "raw"
    packs.raise_open_file_limit(len(files), str(folder))
    counts = [len(index.ends) for index in indexes]
    firsts = np.cumsum([0, *counts])
    places = reading.SpanTable(
        file=np.repeat(np.arange(len(files)), counts),
        start=np.concatenate([index.starts for index in indexes]),
        end=np.concatenate([index.ends for index in indexes]),
    )

    def name(index):
        pack, _, _ = places[index]
        return f"{files[pack]}: {indexes[pack].names[index - firsts[pack]]}"

    labels = np.concatenate([index.labels for index in indexes])
    return encoded.Encoded(
        count=int(firsts[-1]),
        classes=tuple(entry["classes"]),
        labels=labels if entry["labelled"] else None,
        places=places,
        reader=reading.Spans(files, mapped),
        name=name,
        origin=f"{folder} ({split})",
    )


def check_packs(folder: Path, entry: dict) -> list[Path]:
    """The paths of a split's packs, their sizes and digests as in the manifest.

    Args:
        folder: of the copy.
        entry: of the split in the manifest.
    """
    files = [folder / pack["file"] for pack in entry["packs"]]
    for file, pack in zip(files, entry["packs"], strict=True):
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise ValueError(f"{file} is missing; {AGAIN}") from None
        if size != pack["bytes"]:
            raise ValueError(f"{file} has {size} bytes of {pack['bytes']}; {AGAIN}")
        if packs.digest(file) != pack["sha256"]:
            raise ValueError(f"{file} is not the pack of that manifest; {AGAIN}")
    return files
