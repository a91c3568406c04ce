# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a folder that `g2sd prepare` wrote: shards of shrunk pictures and their labels.

The records hold JPEG files, or binary PPM and PGM files, which are pixels behind a line
of text and never decoded.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import json_files
from g2sd_jax.data import array_records, encoded, pipeline, reading
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data.copies import old_packs, shards

MANIFEST = "manifest.json"  # Written last: where it is, all shards are.
UNFINISHED = "unfinished.json"
LAYOUT = 2
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
    if manifest.get("layout") not in (LAYOUT, old_packs.LAYOUT):
        raise ValueError(
            f"{path} has layout {manifest.get('layout')!r}, but this version reads "
            f"{LAYOUT}; prepare the set again."
        )
    return manifest


def open_split(folder: Path, manifest: dict, split: str) -> encoded.Encoded:
    """Reads the indexes, and compares every shard's size and digest with the manifest.

    The records themselves are only read by `shards.verify`.
    """
    splits = manifest["splits"]
    if split not in splits:
        raise ValueError(
            f"{folder} has no split {split!r}; its splits are {', '.join(splits)}. Set "
            "config.data.train_split and config.data.eval_split to them."
        )
    if manifest["layout"] == old_packs.LAYOUT:
        return old_packs.open_split(folder, manifest, split)
    entry = splits[split]
    files, indexes = check_shards(folder, entry)
    reading.raise_open_file_limit(len(files), str(folder))
    names = [name for index in indexes for name in index.names]
    records = array_records.open_files(
        [
            array_records.Stretch(file, 0, len(index.names), len(index.names))
            for file, index in zip(files, indexes, strict=True)
            if index.names
        ]
    )
    labels = np.concatenate([index.labels for index in indexes])
    return encoded.Encoded(
        count=len(names),
        classes=tuple(entry["classes"]),
        labels=labels if entry["labelled"] else None,
        places=reading.SpanTable(
            np.arange(len(names)), *np.concatenate([i.spans for i in indexes]).T
        ),
        reader=array_records.Parts(records),
        name=lambda index: f"{folder} ({split}): {names[index]}",
        origin=f"{folder} ({split})",
    )


def check_shards(folder: Path, entry: dict) -> tuple[list[Path], list[shards.Index]]:
    """The files of a split and their indexes, sizes and digests as in the manifest.

    Args:
        folder: of the copy.
        entry: of the split in the manifest.
    """
    files, indexes = [folder / shard["file"] for shard in entry["shards"]], []
    for file, shard in zip(files, entry["shards"], strict=True):
        try:
            size, index = file.stat().st_size, shards.read_index(file)
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is missing; {AGAIN}") from None
        if size != shard["bytes"]:
            raise ValueError(f"{file} has {size} bytes of {shard['bytes']}; {AGAIN}")
        if index.sha256 != shard["sha256"]:
            raise ValueError(f"{file} is not the file of that manifest; {AGAIN}")
        indexes.append(index)
    return files, indexes
