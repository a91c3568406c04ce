# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a prepared copy: ArrayRecord, and an index beside each.

A record is a `tf.train.Example` with the features `image`, `label` and `name`, so that
other programs read it as they read a set of TensorFlow Datasets. The index is an .npz
with what is wanted before a record is read. It gets its name last of all, so a shard
whose index exists is complete.
"""

import contextlib
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from g2sd_jax.data import array_records
from g2sd_jax.data.tfds import tfrecord

ENDING = ".array_record"
IMAGE = "image"  # The feature with the encoded picture.


class Index(NamedTuple):
    """The index of a shard of n records."""

    labels: np.ndarray  # [n] int32, or [0] where there are none.
    names: tuple[str, ...]  # Of the n records in the source.
    spans: np.ndarray  # [n, 2] int64, first byte and byte after of a record's picture.
    bad: tuple[tuple[str, str], ...]  # (name, reason) of pictures that have no record.
    bytes: int  # Of the ArrayRecord file.
    sha256: str  # Of it.


def index_path(path: Path) -> Path:
    """Where the index of the ArrayRecord file at `path` lies."""
    return path.with_suffix(".npz")


def part_path(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + ".part")


def write(
    path: Path, items: Iterable[tuple[str, int | None, bytes | Exception]]
) -> None:
    """Writes a shard, its files under other names until they are complete.

    Args:
        path: of the ArrayRecord file.
        items: `(name, label, record)` of each picture, the record being bytes, or the
            ValueError or OSError that says why there is none.
    """
    labels, names, spans, bad = [], [], [], []
    index_path(path).unlink(missing_ok=True)  # It would be another file's.

    def records():
        for name, label, record in items:
            if isinstance(record, Exception):
                bad.append((name, str(record)))
                continue
            names.append(name)
            if label is not None:
                labels.append(label)
            example = encode_example(name, label, record)
            first, end, _ = tfrecord.locate_picture(
                example, 0, len(example), IMAGE, None
            )
            spans.append((first, end))
            yield example

    write_file(path, lambda part: array_records.write(part, records()))
    arrays = dict(
        labels=np.array(labels, np.int32),
        names=join_texts(names),
        spans=np.array(spans, np.int64).reshape(-1, 2),
        bad=join_texts([text for pair in bad for text in pair]),
        bytes=np.array(path.stat().st_size),
        sha256=join_texts([file_digest(path)]),
    )
    # NumPy dates what is in an .npz 1980, so that equal indexes are equal bytes.
    write_file(index_path(path), lambda part: save_npz(part, arrays))


def write_file(path: Path, write_part: Callable[[Path], None]) -> None:
    """Has a file written under another name, and names it once it is on the disk."""
    part = part_path(path)
    try:
        write_part(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz under any name."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def encode_example(name: str, label: int | None, image: bytes) -> bytes:
    """A serialized `tf.train.Example`, the same bytes for the same values."""
    protos = importlib.import_module("tensorflow.core.example.example_pb2")
    example = protos.Example()
    features = example.features.feature
    features[IMAGE].bytes_list.value.append(image)
    features["name"].bytes_list.value.append(name.encode(errors="surrogateescape"))
    if label is not None:
        features["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


def join_texts(texts: Iterable[str]) -> np.ndarray:
    """Encodes texts as one array of bytes, a zero after each."""
    # File names are bytes; what is no UTF-8 in them has to come back as it was.
    joined = "".join(f"{text}\0" for text in texts)
    return np.frombuffer(joined.encode(errors="surrogateescape"), np.uint8)


def split_texts(array: np.ndarray) -> tuple[str, ...]:
    """Decodes what `join_texts` encoded."""
    joined = array.tobytes().decode(errors="surrogateescape")
    return tuple(joined.split("\0")[:-1])


def read_index(path: Path) -> Index:
    """Reads the index of the ArrayRecord file at `path`.

    Raises:
        FileNotFoundError: there is none, so the shard is not complete.
        ValueError: it cannot be read.
    """
    try:
        with (
            open(index_path(path), "rb") as file,  # NumPy leaves it open on an error.
            np.load(file, allow_pickle=False) as arrays,
        ):
            texts = split_texts(arrays["bad"])
            return Index(
                labels=arrays["labels"],
                names=split_texts(arrays["names"]),
                spans=arrays["spans"],
                bad=tuple(zip(texts[::2], texts[1::2], strict=True)),
                bytes=int(arrays["bytes"]),
                sha256=split_texts(arrays["sha256"])[0],
            )
    except FileNotFoundError:
        raise
    except Exception as error:  # Whatever numpy and zipfile make of broken bytes.
        raise ValueError(
            f"{index_path(path)} is damaged: it cannot be read."
        ) from error


def verify(path: Path) -> None:
    """Reads all of a shard, and refuses it if one bit of it has changed."""
    if file_digest(path) != read_index(path).sha256:
        raise ValueError(f"{path} is damaged: its sha256 is not the one it was given.")


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
