# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Locates the pictures in TFRecord files, so that each can be read alone.

A TFRecord is its length (uint64), a checksum of that (uint32), the record, and a
checksum of the record. Each record is a `tf.train.Example`, a protocol buffer; only the
keys and lengths in it are looked at here.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

LENGTH = struct.Struct("<Q")
VERSION = 1  # Of `Places` in index files.
HEAD, TAIL = 12, 4  # Bytes before and after a record.

Buffer = bytes | mmap.mmap
Span = tuple[int, int]  # (first byte, byte after the last)


class Places(NamedTuple):
    """The n pictures of one file."""

    start: np.ndarray  # [n] int64, first byte of the encoded picture.
    end: np.ndarray  # [n] int64, byte after it.
    label: np.ndarray  # [n] int32, or [0] where no label was asked for.


def scan(path: Path, image: str, label: str | None) -> Places:
    """Locates every picture of one file, of which a few pages are read.

    Args:
        path: a TFRecord file without compression.
        image: the feature with the encoded picture.
        label: the feature with the class, or None.
    """
    located = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                try:
                    for begin, end in records(buffer, size):
                        located.append(locate_picture(buffer, begin, end, image, label))
                except (LookupError, ValueError, struct.error) as error:
                    raise ValueError(
                        f"{path}: record {len(located)} is damaged, or no "
                        f"tf.train.Example with {image!r} and {label!r} ({error!r}); "
                        "prepare the set again."
                    ) from error
    start, end, labels = zip(*located, strict=True) if located else ((), (), ())
    return Places(
        np.array(start, np.int64),
        np.array(end, np.int64),
        np.array(labels if label else (), np.int32),
    )


def records(buffer: Buffer, size: int) -> Iterator[Span]:
    """Yields (first byte, byte after) of every record of a file."""
    at = 0
    while at < size:
        [length] = LENGTH.unpack_from(buffer, at)
        begin, end = at + HEAD, at + HEAD + length
        if end + TAIL > size:
            raise LookupError("it is cut off")
        yield begin, end
        at = end + TAIL


def locate_picture(
    buffer: Buffer, begin: int, end: int, image: str, label: str | None
) -> tuple[int, int, int]:
    """Locates the encoded picture of one `tf.train.Example`, and reads its label.

    Args:
        buffer: bytes, or a file that is mapped into memory.
        begin: first byte of the Example.
        end: byte after it.
        image: the feature with the encoded picture.
        label: the feature with the class; without one the label is 0.

    Returns:
        (first byte of the picture, byte after it, label).
    """
    spans = {}
    for _, features in fields(buffer, begin, end):  # Example.features
        for _, entry in fields(buffer, *features):  # Features.feature, a map
            pair = dict(fields(buffer, *entry))  # 1: the key, 2: the feature
            spans[buffer[slice(*pair[1])].decode()] = pair[2]
    place = only_value(buffer, spans[image])
    if label is None:
        return *place, 0
    return *place, to_signed(
        read_varint(buffer, only_value(buffer, spans[label])[0])[0]
    )


def only_value(buffer: Buffer, feature: Span) -> Span:
    """The span of the one value in the one list of a `tf.train.Feature`."""
    [(_, values)] = fields(buffer, *feature)
    [(_, value)] = fields(buffer, *values)
    return value


def fields(buffer: Buffer, begin: int, end: int) -> Iterator[tuple[int, Span]]:
    """Yields (number, (first byte, byte after)) of the fields of a message.

    All fields of an Example are of wire type 2: a length, then that many bytes.
    """
    at = begin
    while at < end:
        tag, at = read_varint(buffer, at)
        if tag & 7 != 2:
            raise LookupError(f"unexpected wire type {tag & 7}")
        length, at = read_varint(buffer, at)
        if at + length > end:
            raise LookupError("a length in it leads out of it")
        yield tag >> 3, (at, at + length)
        at += length


def read_varint(buffer: Buffer, at: int) -> tuple[int, int]:
    """(value, byte after it): seven bits a byte, the lowest first."""
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def to_signed(value: int) -> int:
    """Reinterprets an unsigned integer of 64 bits as a signed one."""
    return value - (1 << 64) if value >> 63 else value
