# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How the bytes of an example are reached: readers that a worker process can be sent.

A source lists its examples once, as *places*; a reader turns a place into bytes. It
opens its files where it is used, so that what is sent to a process is their paths.
"""

import mmap
import os
import resource
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MOST_OPEN = 1 << 16  # Files that the limit is raised to at most.
OTHERS = 256  # Of those, what the rest of the process may open.

Span = tuple[int, int, int]  # (number of the file, first byte, byte after the last)


class Reader(Protocol):
    """Reads the bytes of an example; many threads may call it, and it is pickled."""

    def read(self, place: Any) -> bytes | memoryview:
        """Returns the bytes at a place; raises OSError where there are none."""


class Paths:
    """Reads whole files; a place is a path."""

    def read(self, place: str) -> bytes:
        """The bytes of a file."""
        with open(place, "rb") as file:
            return file.read()


class Inline:
    """Hands out bytes that lie in memory; a place is those bytes."""

    def read(self, place: bytes) -> bytes:
        """The bytes themselves."""
        return place


class Spans:
    """Reads parts of large files, which stay open; a place is a `Span`.

    Args:
        paths: of the files.
        mapped: whether to map them into memory: what is read is then a view.
    """

    def __init__(self, paths: Sequence[Path], mapped: bool = False):
        self._paths, self._mapped = tuple(paths), mapped
        self._files = [SharedFile(path, mapped) for path in self._paths]

    def __reduce__(self):
        return Spans, (self._paths, self._mapped)

    def read(self, place: Span) -> bytes | memoryview:
        """The bytes of a span; of a mapped file, a view of them without a copy."""
        number, start, end = place
        return self._files[number].read(start, end)


class SharedFile:
    """A file that any thread opens first and that stays open.

    Args:
        path: of the file.
        mapped: whether to map it into memory.
    """

    def __init__(self, path: Path, mapped: bool):
        self._path, self._mapped = path, mapped
        self._lock, self._file = threading.Lock(), None

    def read(self, start: int, end: int) -> bytes | memoryview:
        """Bytes `start` to `end`; raises OSError where the file is shorter."""
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

    def _open(self) -> int | memoryview:
        descriptor = os.open(self._path, os.O_RDONLY)
        if not self._mapped:
            weakref.finalize(self, os.close, descriptor)
            return descriptor
        try:
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)


class SpanTable:
    """The `Span` of every example, as three columns instead of as many objects.

    Args:
        file: [n] the number of the file.
        start: [n] the first byte.
        end: [n] the byte after the last.
    """

    def __init__(self, file: np.ndarray, start: np.ndarray, end: np.ndarray):
        self._columns = file, start, end

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> Span:
        return tuple(int(column[index]) for column in self._columns)


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
