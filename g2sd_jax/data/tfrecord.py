# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Where in TFRecord files the pictures lie, so that each can be read alone.

A TFRecord is its length (uint64), a checksum of that (uint32), the record, and a
checksum of the record. Each record is a `tf.train.Example`, a protocol buffer; only the
keys and lengths in it are looked at here.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

LENGTH = struct.Struct("<Q")
VERSION = 1  # Of `Places` as they are kept on the disk.
HEAD, TAIL = 12, 4  # Bytes around a record.


class Places(NamedTuple):
    """The n pictures of one file."""

    start: np.ndarray  # [n] int64, first byte of the encoded picture
    end: np.ndarray  # [n] int64, byte after it
    label: np.ndarray  # [n] int32, or [0] where none was asked for


def scan(path: Path, image: str, label: str | None) -> Places:
    """Walks through one file; only the pages it looks at need to come from the disk.

    Args:
        path: a TFRecord file without compression.
        image: the feature with the encoded picture.
        label: the feature with the class, or None.
    """
    found = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                try:
                    for begin, end in records(buffer, size):
                        found.append(picture(buffer, begin, end, image, label))
                except (LookupError, ValueError, struct.error) as error:
                    raise ValueError(
                        f"{path}: record {len(found)} is damaged, or no "
                        f"tf.train.Example with {image!r} and {label!r} ({error!r}); "
                        "prepare the set again."
                    ) from error
    start, end, labels = zip(*found, strict=True) if found else ((), (), ())
    return Places(
        np.array(start, np.int64),
        np.array(end, np.int64),
        np.array(labels if label else (), np.int32),
    )


def records(buffer, size):
    """Yields (first byte, byte after) of every record of a file."""
    at = 0
    while at < size:
        [length] = LENGTH.unpack_from(buffer, at)
        begin, end = at + HEAD, at + HEAD + length
        if end + TAIL > size:
            raise LookupError("it is cut off")
        yield begin, end
        at = end + TAIL


def picture(buffer, begin, end, image, label) -> tuple[int, int, int]:
    """Where the encoded picture of one `tf.train.Example` lies, and its label.

    Args:
        buffer: bytes, or a file that is mapped into memory.
        begin: first byte of the Example.
        end: byte after it.
        image: the feature with the encoded picture.
        label: the feature with the class; without one the label is 0.
    """
    spans = {}
    for _, features in fields(buffer, begin, end):  # Example.features
        for _, entry in fields(buffer, *features):  # Features.feature, a map
            pair = dict(fields(buffer, *entry))  # 1: the key, 2: the feature
            spans[buffer[slice(*pair[1])].decode()] = pair[2]
    place = only(buffer, spans[image])
    if label is None:
        return *place, 0
    return *place, signed(varint(buffer, only(buffer, spans[label])[0])[0])


def only(buffer, feature):
    """The span of the one value in the one list of a `tf.train.Feature`."""
    [(_, values)] = fields(buffer, *feature)
    [(_, value)] = fields(buffer, *values)
    return value


def fields(buffer, begin, end):
    """Yields (number, (first byte, byte after)) of the fields of a message.

    All fields of an Example are of wire type 2: a length, then that many bytes.
    """
    at = begin
    while at < end:
        tag, at = varint(buffer, at)
        if tag & 7 != 2:
            raise LookupError(f"unexpected wire type {tag & 7}")
        length, at = varint(buffer, at)
        if at + length > end:
            raise LookupError("a length in it leads out of it")
        yield tag >> 3, (at, at + length)
        at += length


def varint(buffer, at):
    """(value, byte after it): seven bits a byte, the lowest first."""
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def signed(value):
    return value - (1 << 64) if value >> 63 else value
