# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFRecord files that can only be read from their beginning, such as those at gs://….

Process p of n owns the p-th n-th of a split's examples, whichever files they are in. An
epoch visits its files in an order drawn from (seed, epoch, p), eight at a time, and its
examples through a shuffle buffer that is drawn alike. So an epoch sees every example
once, in an order that is fixed for a given number of processes. A run that starts
within an epoch reads what it skips, but decodes none of it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from g2sd_jax.data import order

CYCLE, BLOCK = 8, 16  # Files read at once, examples taken of each in turn.


class Part(NamedTuple):
    """A stretch of one file."""

    path: str
    first: int  # Number, within the split, of its first example.
    skip: int  # Examples of the file before that.
    take: int  # Examples in it.


class UndecodedBatch(NamedTuple):
    """The b rows of one batch that one process reads."""

    index: np.ndarray  # [b] int32, numbers within the split.
    valid: np.ndarray  # [b] bool; rows that are not valid stand last.
    image: list[bytes]  # [b] encoded pictures.
    label: np.ndarray  # [b] int32.


class Stream(NamedTuple):
    """One split of TFRecord files, to be read from their beginning."""

    count: int  # Examples.
    parts: tuple[Part, ...]
    parse: Callable[[bytes], tuple[bytes, int]]  # record -> (encoded picture, label)
    buffer: int  # Examples that are shuffled at a time.


def process_parts(
    parts: Sequence[Part], count: int, process_index: int, process_count: int
) -> list[Part]:
    """The stretches that one process reads; the processes' differ by one example.

    Args:
        parts: of the split.
        count: examples of the split.
        process_index: of this process.
        process_count: how many processes there are.
    """
    begin = count * process_index // process_count
    end = count * (process_index + 1) // process_count
    stretches = []
    for part in parts:
        first, last = max(begin, part.first), min(end, part.first + part.take)
        if first < last:
            skip = part.skip + first - part.first
            stretches.append(Part(part.path, first, skip, last - first))
    return stretches


def train_batches(
    stream: Stream,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[UndecodedBatch, int]]:
    """Yields (batch, epoch) of one process, endlessly, from any step on.

    The arguments are those of `order.train_batches`.
    """
    rows = rows_per_process(batch, process_index, process_count)
    per_epoch = stream.count // batch
    if per_epoch == 0:
        raise ValueError(
            f"config.batch={batch} but only {stream.count} training examples: an epoch "
            f"would hold no batch; use a batch of at most {stream.count}."
        )
    parts = process_parts(stream.parts, stream.count, process_index, process_count)

    def endless():
        epoch, place = divmod(start_step, per_epoch)
        while True:
            bits = np.random.SeedSequence([seed, epoch, process_index])
            examples = read_shuffled(parts, bits, stream.buffer, place * rows)
            for _ in range(place, per_epoch):
                numbered = [next(examples) for _ in range(rows)]
                yield gather(stream, numbered, rows), epoch
            epoch, place = epoch + 1, 0

    return endless()


def eval_batches(
    stream: Stream, batch: int, process_index: int = 0, process_count: int = 1
) -> Iterator[tuple[UndecodedBatch, None]]:
    """Yields (batch, None) until all processes together have read every example once.

    All processes yield equally many batches. The arguments are those of
    `order.eval_batches`.
    """
    rows = rows_per_process(batch, process_index, process_count)
    parts = process_parts(stream.parts, stream.count, process_index, process_count)
    largest = -(-stream.count // process_count)

    def all_once():
        examples, count = read_in_order(parts), sum(part.take for part in parts)
        for first in range(0, largest, rows):
            remaining = max(0, count - first)
            numbered = [next(examples) for _ in range(min(rows, remaining))]
            yield gather(stream, numbered, rows), None

    return all_once()


def rows_per_process(batch: int, process_index: int, process_count: int) -> int:
    """How many rows of a global batch one process reads."""
    rows = order.process_rows(batch, process_index, process_count)
    return rows.stop - rows.start


def gather(
    stream: Stream, numbered: Sequence[tuple[int, bytes]], rows: int
) -> UndecodedBatch:
    """Makes a batch of (number, record) pairs, padded to `rows` with invalid rows."""
    parsed = [stream.parse(record) for _, record in numbered]
    missing = rows - len(parsed)
    images, labels = [image for image, _ in parsed], [label for _, label in parsed]
    index = [number for number, _ in numbered]
    return UndecodedBatch(
        index=np.array(index + [0] * missing, np.int32),
        valid=np.arange(rows) < len(parsed),
        image=images + [b""] * missing,
        label=np.array(labels + [0] * missing, np.int32),
    )


def read_shuffled(
    parts: Sequence[Part], bits: np.random.SeedSequence, buffer: int, skip: int
) -> Iterator[tuple[int, bytes]]:
    """Iterator of (number, record) in the order that `bits` draws.

    Args:
        parts: to read.
        bits: seed of the order.
        buffer: examples that are shuffled at a time.
        skip: examples to leave out at the beginning.
    """
    drawn = np.random.Generator(np.random.PCG64(bits))
    parts = [parts[i] for i in drawn.permutation(len(parts))]
    seed = int(drawn.integers(1 << 31))
    return read(parts, CYCLE, lambda records: records.shuffle(buffer, seed).skip(skip))


def read_in_order(parts: Sequence[Part]) -> Iterator[tuple[int, bytes]]:
    """Iterator of (number, record) in the order of the files."""
    return read(parts, 1, lambda records: records)


def read(
    parts: Sequence[Part],
    cycle: int,
    arrange: Callable[[Any], Any],
) -> Iterator[tuple[int, bytes]]:
    """Iterator of (number, record), read by TensorFlow.

    Args:
        parts: to read.
        cycle: how many are read at once.
        arrange: shuffles and skips a `tf.data.Dataset`.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # They are the model's.

    def records(path, first, skip, take):
        taken = tf.data.TFRecordDataset(path).skip(skip).take(take)
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + take), taken)

    if not parts:
        return iter(())
    paths, *numbers = zip(*parts, strict=True)
    columns = (list(paths), *np.array(numbers, np.int64))
    files = tf.data.Dataset.from_tensor_slices(columns)
    numbered = files.interleave(
        records,
        cycle_length=cycle,
        block_length=BLOCK,
        num_parallel_calls=cycle,
        deterministic=True,
    )
    return arrange(numbered).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
