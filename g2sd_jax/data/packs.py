# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pack files: many small files in one, with an index at the end.

A pack is the records one after another, an index of them, and a footer. It gets its
name only when it is complete, so a pack that exists is complete. ArrayRecord would do
too, but its pixels cannot be mapped into memory, and it read records of 21 kB at a
quarter to two fifths of this rate (one core, warm files, in turns).
"""

import contextlib
import hashlib
import io
import os
import resource
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b"G2SDPAK1"
MOST_OPEN = 1 << 16  # Files that the limit is raised to at most.
OTHERS = 256  # Of those, what the rest of the process may open.
FOOTER = struct.Struct("<8sQ32s")  # Magic, where the index begins, sha256 before it.


class Index(NamedTuple):
    """The index of a pack of n records."""

    ends: np.ndarray  # [n] int64, the byte after each record; the first begins at 0.
    labels: np.ndarray  # [n] int32, or [0] where there are none.
    names: tuple[str, ...]  # Of the n records in the source.
    bad: tuple[tuple[str, str], ...]  # (name, reason) of pictures that have no record.

    @property
    def starts(self) -> np.ndarray:
        """[n] int64, the first byte of each record."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)


def write(
    path: Path, items: Iterable[tuple[str, int | None, bytes | Exception]]
) -> None:
    """Writes a pack, under another name until it is complete.

    Args:
        path: of the pack.
        items: `(name, label, record)` of each picture, the record being bytes, or the
            ValueError or OSError that says why there is none.
    """
    part = path.with_name(path.name + ".part")
    digest, ends, labels, names, bad = hashlib.sha256(), [], [], [], []
    try:
        with open(part, "wb") as file:

            def put(data):
                file.write(data)
                digest.update(data)

            for name, label, record in items:
                if isinstance(record, Exception):
                    bad.append((name, str(record)))
                    continue
                put(record)
                ends.append(file.tell())
                names.append(name)
                if label is not None:
                    labels.append(label)
            begin = file.tell()
            put(encode_index(ends, labels, names, bad))
            file.write(FOOTER.pack(MAGIC, begin, digest.digest()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def encode_index(
    ends: Sequence[int],
    labels: Sequence[int],
    names: Sequence[str],
    bad: Sequence[tuple[str, str]],
) -> bytes:
    """Encodes the fields of an `Index` as an .npz.

    NumPy dates it 1980, so that equal indexes are equal bytes.
    """
    file = io.BytesIO()
    np.savez(
        file,
        ends=np.array(ends, np.int64),
        labels=np.array(labels, np.int32),
        names=join_texts(names),
        bad=join_texts([text for pair in bad for text in pair]),
    )
    return file.getvalue()


def join_texts(texts: Iterable[str]) -> np.ndarray:
    """Encodes texts as one array of bytes, a zero after each."""
    # File names are bytes; what is no UTF-8 in them has to come back as it was.
    joined = "".join(f"{text}\0" for text in texts)
    return np.frombuffer(joined.encode(errors="surrogateescape"), np.uint8)


def split_texts(array: np.ndarray) -> tuple[str, ...]:
    """Decodes what `join_texts` encoded."""
    joined = array.tobytes().decode(errors="surrogateescape")
    return tuple(joined.split("\0")[:-1])


def digest(path: Path) -> str:
    """The sha256 in the footer of a pack; a ValueError where there is no footer."""
    return read_footer(path)[1].hex()


def read_footer(path: Path) -> tuple[int, bytes, int]:
    """(first byte of the index, sha256 that the pack should have, first of the footer).

    Raises:
        ValueError: the file is no complete pack.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - FOOTER.size))
        end = file.read()
    magic, begin, claimed = FOOTER.unpack(end.rjust(FOOTER.size, b"\0"))
    if magic != MAGIC or begin > size - FOOTER.size:
        raise ValueError(f"{path} is no whole pack of `g2sd prepare`; make it again.")
    return begin, claimed, size - FOOTER.size


def verify(path: Path) -> None:
    """Reads all of a pack, and refuses it if one bit of it has changed."""
    _, claimed, left = read_footer(path)
    actual = hashlib.sha256()
    with open(path, "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            left -= len(block)
            actual.update(block)
    if actual.digest() != claimed:
        raise ValueError(f"{path} is damaged: its sha256 is not the one it was given.")


def read_index(path: Path) -> Index:
    """Reads the index of a pack, without its records."""
    begin, _, end = read_footer(path)
    with open(path, "rb") as file:
        file.seek(begin)
        encoded_index = file.read(end - begin)
    try:
        with np.load(io.BytesIO(encoded_index), allow_pickle=False) as arrays:
            texts = split_texts(arrays["bad"])
            names = split_texts(arrays["names"])
            pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
            return Index(arrays["ends"], arrays["labels"], names, pairs)
    except Exception as error:  # Whatever numpy and zipfile make of broken bytes.
        raise ValueError(f"{path} is damaged: its index cannot be read.") from error


def raise_open_file_limit(files: int, origin: str) -> None:
    """Raises the limit of open files, which is 1024 on many systems.

    ImageNet has 1024 training files, and one that fails to open would count as
    unreadable.

    Args:
        files: how many a data set keeps open.
        origin: what an error calls it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if files + OTHERS > most:
        raise ValueError(
            f"{origin} has {files} files to keep open, but the system allows {most} in "
            "all; raise `ulimit -Hn`, or make a copy of it with `g2sd prepare`."
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
