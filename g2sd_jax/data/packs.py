# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pack files: many small files in one, with an index at the end.

A pack is the records one after another, an index of them, and a footer. It gets its
name only when it is whole, so a pack is there and complete, or not there. ArrayRecord
would do too, but its pixels cannot be mapped into memory, and it read records of 21 kB
at a quarter to two fifths of this rate (one core, warm files, in turns).
"""

import contextlib
import hashlib
import io
import mmap
import os
import resource
import struct
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b"G2SDPAK1"
MOST_OPEN, OTHERS = 1 << 16, 256  # Files; of them, those that are not ours.
FOOTER = struct.Struct("<8sQ32s")  # Magic, where the index begins, sha256 before it.


class Index(NamedTuple):
    """What a pack knows of its n records."""

    ends: np.ndarray  # [n] int64, the byte after each record; the first begins at 0
    labels: np.ndarray  # [n] int32, or [0] where there are none
    names: tuple[str, ...]  # n, as the source calls them
    bad: tuple[tuple[str, str], ...]  # (name, reason) of what could not be packed

    @property
    def starts(self):
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)


def write(path: Path, items) -> None:
    """Writes a pack; killed or failing on the way, it leaves nothing of that name.

    Args:
        path: of the pack.
        items: iterator of `(name, label or None, record)`, the record being bytes, or
            the ValueError or OSError that says why there is none.
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
            put(packed(ends, labels, names, bad))
            file.write(FOOTER.pack(MAGIC, begin, digest.digest()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def packed(ends, labels, names, bad) -> bytes:
    """The index as an .npz, which numpy dates 1980: the same index, the same bytes."""
    file = io.BytesIO()
    np.savez(
        file,
        ends=np.array(ends, np.int64),
        labels=np.array(labels, np.int32),
        names=joined(names),
        bad=joined([text for pair in bad for text in pair]),
    )
    return file.getvalue()


def joined(texts):
    # File names are bytes; what is no UTF-8 in them has to come back as it was.
    whole = "".join(f"{text}\0" for text in texts)
    return np.frombuffer(whole.encode(errors="surrogateescape"), np.uint8)


def separated(array):
    whole = array.tobytes().decode(errors="surrogateescape")
    return tuple(whole.split("\0")[:-1])


def digest(path: Path) -> str:
    """The sha256 a pack claims to have; a ValueError where this is no whole pack."""
    return footer(path)[1].hex()


def footer(path):
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - FOOTER.size))
        end = file.read()
    magic, begin, claimed = FOOTER.unpack(end.rjust(FOOTER.size, b"\0"))
    if magic != MAGIC or begin > size - FOOTER.size:
        raise ValueError(f"{path} is no whole pack of `g2sd prepare`; make it again.")
    return begin, claimed, size - FOOTER.size


def verify(path: Path) -> None:
    """Reads a pack whole, and refuses it where one bit of it has changed."""
    _, claimed, size = footer(path)
    seen, left = hashlib.sha256(), size
    with open(path, "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            left -= len(block)
            seen.update(block)
    if seen.digest() != claimed:
        raise ValueError(f"{path} is damaged: its sha256 is not the one it was given.")


def index(path: Path) -> Index:
    """The index alone, without its records."""
    begin, _, end = footer(path)
    with open(path, "rb") as file:
        file.seek(begin)
        held = file.read(end - begin)
    try:
        with np.load(io.BytesIO(held), allow_pickle=False) as arrays:
            texts = separated(arrays["bad"])
            names = separated(arrays["names"])
            pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
            return Index(arrays["ends"], arrays["labels"], names, pairs)
    except Exception as error:  # Whatever numpy and zipfile make of broken bytes.
        raise ValueError(f"{path} is damaged: its index cannot be read.") from error


def make_room(files: int, origin: str) -> None:
    """Lets this process keep so many files open: many systems begin with 1024 in all.

    ImageNet has 1024 training files, and what fails to open would count as unreadable.
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


class Reader:
    """Parts of a file; it is opened when first read, by any thread, and stays open."""

    def __init__(self, path: Path, mapped: bool):
        self._path, self._mapped = path, mapped
        self._lock, self._file = threading.Lock(), None

    def read(self, start: int, end: int):
        """Bytes, or where the file is mapped a view of them that copies nothing."""
        if self._file is None:
            with self._lock:
                if self._file is None:
                    self._file = self._open()
        if self._mapped:
            return self._file[start:end]
        record = os.pread(self._file, end - start, start)
        if len(record) < end - start:
            raise OSError(f"{self._path} ends within a record.")
        return record

    def _open(self):
        descriptor = os.open(self._path, os.O_RDONLY)
        if not self._mapped:
            weakref.finalize(self, os.close, descriptor)
            return descriptor
        try:
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
