# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the packs of copies that `g2sd prepare` wrote before it wrote ArrayRecord.

A pack is the records one after another, an index of them, and a footer.
"""

import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from g2sd_jax.data import encoded, reading
from g2sd_jax.data.copies import shards

LAYOUT = 1  # Of a manifest.
MAGIC = b"G2SDPAK1"
FOOTER = struct.Struct("<8sQ32s")  # Magic, where the index begins, sha256 before it.


def open_split(folder: Path, manifest: Mapping, split: str) -> encoded.Encoded:
    """Random access to the pictures of one split; the sizes of its packs are compared.

    Args:
        folder: of the copy.
        manifest: of layout 1.
        split: one of its splits.
    """
    entry = manifest["splits"][split]
    files = [folder / pack["file"] for pack in entry["packs"]]
    for file, pack in zip(files, entry["packs"], strict=True):
        size = file.stat().st_size if file.exists() else 0
        if size != pack["bytes"]:
            raise ValueError(
                f"{file} has {size} bytes of {pack['bytes']}; prepare the set again."
            )
    columns = [read_index(file) for file in files]
    ends = [column["ends"] for column in columns]
    names = [name for column in columns for name in shards.split_texts(column["names"])]
    reading.raise_open_file_limit(len(files), str(folder))
    return encoded.Encoded(
        count=len(names),
        classes=tuple(entry["classes"]),
        labels=np.concatenate([column["labels"] for column in columns])
        if entry["labelled"]
        else None,
        places=reading.SpanTable(
            file=np.repeat(np.arange(len(files)), [len(each) for each in ends]),
            start=np.concatenate([np.concatenate([[0], each[:-1]]) for each in ends]),
            end=np.concatenate(ends),
        ),
        reader=reading.Spans(files, mapped=manifest["job"]["format"] == "raw"),
        name=lambda index: f"{folder} ({split}): {names[index]}",
        origin=f"{folder} ({split})",
        notes=(
            f"{folder} was written by an older `g2sd prepare`; `g2sd prepare "
            f"--source={folder} --out=NEW` makes ArrayRecord files of it, which other "
            "programs read as well.",
        ),
    )


def read_index(path: Path) -> dict[str, np.ndarray]:
    """The index of a pack: `ends` [n] int64, `labels` [n] or [0] int32, `names`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - FOOTER.size))
        magic, begin, _ = FOOTER.unpack(file.read().rjust(FOOTER.size, b"\0"))
        if magic != MAGIC or begin > size - FOOTER.size:
            raise ValueError(f"{path} is no whole pack; prepare the set again.")
        file.seek(begin)
        index = file.read(size - FOOTER.size - begin)
    try:
        with np.load(io.BytesIO(index), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # Whatever numpy and zipfile make of broken bytes.
        raise ValueError(f"{path} is damaged: its index cannot be read.") from error
