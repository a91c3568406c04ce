# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A folder that `g2sd prepare` wrote: packs of pictures, shrunk once, labels inside.

The records are JPEG files, or binary PPM and PGM files, which are pixels behind a line
of text: those are mapped into memory and never decoded.
"""

import json
from pathlib import Path

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, packs, pipeline

MANIFEST = "manifest.json"  # Written last: where it is, all packs are.
UNFINISHED = "unfinished.json"
LAYOUT = 1
AGAIN = "run the same `g2sd prepare` again, which makes what is missing."

frames = pipeline.Training  # What a training batch is laid out in.


def load(config, split) -> datasets.Dataset:
    """One split of the copy at `config.data.path`, decoded as it is needed."""
    return pipeline.dataset(config, listed(config, split), split)


def listed(config, split) -> encoded.Encoded:
    """The pictures of one split, of which nothing but the index was read."""
    folder = Path(config.data.path).expanduser()
    manifest = read_manifest(folder)
    size, wanted = manifest["job"]["size"], min(config.model.image_size)
    if size < wanted:
        raise ValueError(
            f"config.data.path={str(folder)!r} was prepared with --size={size}, less "
            f"than config.model.image_size={tuple(config.model.image_size)}; prepare "
            f"it again with --size={wanted} or more, which enlarges no picture."
        )
    held = open_split(folder, manifest, split)
    if held.labels is None and config.data.classes:
        raise ValueError(
            f"{held.origin} has no labels, but config.data.classes="
            f"{config.data.classes}; pictures alone need --config.data.classes=0."
        )
    return held


def read_manifest(folder: Path) -> dict:
    """What is in a finished copy; anything else is refused with the way out."""
    path = folder / MANIFEST
    if (folder / UNFINISHED).exists() and not path.exists():
        raise ValueError(
            f"config.data.path={str(folder)!r} is a copy that is not finished; run the "
            "same `g2sd prepare` again, it goes on where it was."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"config.data.path={str(folder)!r} has no {MANIFEST}; config.data.source="
            "prepared reads a folder that `g2sd prepare --out=` wrote."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
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
    told = splits[split]
    files = check(folder, told)
    indexes = [packs.index(file) for file in files]
    mapped = manifest["job"]["format"] == "raw"
    packs.make_room(len(files), str(folder))
    readers = [packs.Reader(file, mapped) for file in files]
    firsts = np.cumsum([0] + [len(each.ends) for each in indexes])

    def place(index):
        pack = int(np.searchsorted(firsts, index, side="right")) - 1
        return pack, int(index - firsts[pack])

    def read(index):
        pack, row = place(index)
        start, end = starts[pack][row], indexes[pack].ends[row]
        return readers[pack].read(int(start), int(end))

    def name(index):
        pack, row = place(index)
        return f"{files[pack]}: {indexes[pack].names[row]}"

    starts = [each.starts for each in indexes]
    labels = np.concatenate([each.labels for each in indexes])
    return encoded.Encoded(
        count=int(firsts[-1]),
        classes=tuple(told["classes"]),
        labels=labels if told["labelled"] else None,
        read=read,
        name=name,
        origin=f"{folder} ({split})",
    )


def check(folder, told):
    """The paths of a split's packs, each as long and of the digest it should have."""
    files = [folder / pack["file"] for pack in told["packs"]]
    for file, pack in zip(files, told["packs"], strict=True):
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise ValueError(f"{file} is missing; {AGAIN}") from None
        if size != pack["bytes"]:
            raise ValueError(f"{file} has {size} bytes of {pack['bytes']}; {AGAIN}")
        if packs.digest(file) != pack["sha256"]:
            raise ValueError(f"{file} is not the pack of that manifest; {AGAIN}")
    return files
