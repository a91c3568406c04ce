# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches in memory that processes share: their rows are written by any of them.

A batch is as many copies of one empty row, each array in one stretch of an anonymous
file. That file is handed to a process once, and used again as soon as no array of the
batch is referred to any more, on a device of the host's own memory included.
"""

import collections
import itertools
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

ALIGNED = 64  # Bytes; JAX takes such arrays on a CPU without a copy.

EXTENT = "_extent"  # [rows, 2] int32 beside the batch: what of its pictures is taken.

Batch = dict[str, np.ndarray]


class Field(NamedTuple):
    """One array of a batch within its memory."""

    offset: int  # Bytes.
    shape: tuple[int, ...]
    dtype: np.dtype


def fields_of(row: Batch, count: int) -> tuple[dict[str, Field], int]:
    """Lays out a batch.

    Args:
        row: an empty batch of one row.
        count: rows of the batch.

    Returns:
        The fields by name, and the bytes that all take.
    """
    fields, end = {}, 0
    for name, array in row.items():
        shape = (count, *array.shape[1:])
        fields[name] = Field(end, shape, array.dtype)
        size = int(np.prod(shape)) * array.itemsize
        end += -(-size // ALIGNED) * ALIGNED
    return fields, max(end, ALIGNED)


def arrays_in(memory: np.ndarray, fields: Mapping[str, Field]) -> Batch:
    """The arrays of a batch, all of them views of its memory [bytes] uint8."""
    arrays = {}
    for name, field in fields.items():
        size = int(np.prod(field.shape)) * field.dtype.itemsize
        part = memory[field.offset : field.offset + size]
        arrays[name] = part.view(field.dtype).reshape(field.shape)
    return arrays


def paste(batch: Batch, row: int, pixels: np.ndarray) -> None:
    """Puts a picture at the top left of a row, beyond which the row is zero.

    Only what another picture has left there is cleared, not all of the row. A batch
    without `EXTENT` is a new one, with nothing to clear.

    Args:
        batch: with an array `image` [rows, H, W, C].
        row: in it.
        pixels: [h, w, C] of the picture.
    """
    frame, (height, width) = batch["image"][row], pixels.shape[:2]
    frame[:height, :width] = pixels
    if EXTENT in batch:
        rows, columns = batch[EXTENT][row].tolist()
        frame[height:rows, :columns] = 0
        frame[: min(height, rows), width:columns] = 0
        batch[EXTENT][row] = height, width


def with_extent(batch: Batch) -> Batch:
    """An empty batch, and beside it that nothing of its rows is taken."""
    [count] = {len(array) for array in batch.values()}
    return {**batch, EXTENT: np.zeros((count, 2), np.int32)}


def without_extent(batch: Batch) -> Batch:
    """The batch alone."""
    return {name: array for name, array in batch.items() if name != EXTENT}


class Block:
    """The memory of one batch.

    Args:
        fields: of the batch.
        size: bytes.
    """

    _numbers = itertools.count()

    def __init__(self, fields: Mapping[str, Field], size: int):
        self.number, self.fields, self.size = next(self._numbers), fields, size
        self.descriptor = anonymous_file(size)
        weakref.finalize(self, os.close, self.descriptor)
        self._memory = mmap.mmap(self.descriptor, size)

    def map(self) -> np.ndarray:
        """[bytes] uint8, to which all arrays of the batch refer."""
        return np.frombuffer(self._memory, np.uint8)


def anonymous_file(size: int) -> int:
    """A descriptor of a file without a name, in memory where the system has such.

    Unlike /dev/shm, which containers often limit to 64 MB, it is bounded by the memory
    alone.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("batch")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


class Shared(NamedTuple):
    """A batch whose rows are to be filled."""

    block: Block
    arrays: Batch  # Which may hold another batch yet.


class Blocks:
    """Hands out batches, and takes their memory back once nobody refers to them.

    Args:
        empty: (number of rows, whether for training) -> an empty batch.
    """

    def __init__(self, empty: Callable[[int, bool], Batch]):
        self._empty = empty
        self._free = collections.defaultdict(collections.deque)

    def take(self, count: int, training: bool) -> Shared:
        """A batch of `count` rows."""
        free = self._free[count, training]
        try:
            block = free.pop()
        except IndexError:
            row = with_extent(self._empty(1, training))
            block = Block(*fields_of(row, count))
        memory = block.map()
        # Views of views refer to `memory` itself, so it lives as long as any of them.
        weakref.finalize(memory, free.append, block).atexit = False
        return Shared(block, arrays_in(memory, block.fields))
