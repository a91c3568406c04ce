# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFRecord files that can only be read from their beginning, such as those at gs://….

Process p of n owns the p-th n-th of a split's examples, whichever files they are in. An
epoch visits its files in an order drawn from (seed, epoch, p), eight at a time, and its
examples through a shuffle buffer that is drawn alike. So an epoch sees every example
once, in an order that is fixed for a given number of processes. A run that starts
within an epoch reads what it skips, but decodes none of it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from g2sd_jax.data import order

CYCLE, BLOCK = 8, 16  # Files read at once, examples taken of each in turn.


class Part(NamedTuple):
    """A stretch of one file."""

    path: str
    first: int  # The split's number of its first example.
    skip: int  # Examples of the file before that.
    take: int


class Read(NamedTuple):
    """What one process has read for one batch, undecoded."""

    index: np.ndarray  # [b] int32, numbers within the split
    valid: np.ndarray  # [b] bool; the other rows stand last
    image: list[bytes]  # b
    label: np.ndarray  # [b] int32


class Stream(NamedTuple):
    """One split, to be read in the order that its functions below decide."""

    count: int
    parts: tuple[Part, ...]
    parse: Callable  # record -> (bytes of the picture, label)
    buffer: int  # Examples that are shuffled at a time.


def share(parts, count, process_index, process_count) -> list[Part]:
    """The stretches of one process; their sizes differ by one at most."""
    begin = count * process_index // process_count
    end = count * (process_index + 1) // process_count
    own = []
    for part in parts:
        first, last = max(begin, part.first), min(end, part.first + part.take)
        if first < last:
            skip = part.skip + first - part.first
            own.append(Part(part.path, first, skip, last - first))
    return own


def train_batches(
    stream: Stream, batch, seed, start_step=0, process_index=0, process_count=1
) -> Iterator:
    """Endless (`Read`, epoch) of one process from any step on, as in `order`."""
    rows = rows_of(batch, process_index, process_count)
    per_epoch = stream.count // batch
    if per_epoch == 0:
        raise ValueError(
            f"config.batch={batch} but only {stream.count} training examples: an epoch "
            f"would hold no batch; use a batch of at most {stream.count}."
        )
    own = share(stream.parts, stream.count, process_index, process_count)

    def endless():
        epoch, place = divmod(start_step, per_epoch)
        while True:
            bits = np.random.SeedSequence([seed, epoch, process_index])
            examples = shuffled(own, bits, stream.buffer, place * rows)
            for _ in range(place, per_epoch):
                some = [next(examples) for _ in range(rows)]
                yield gather(stream, some, rows), epoch
            epoch, place = epoch + 1, 0

    return endless()


def eval_batches(stream: Stream, batch, process_index=0, process_count=1) -> Iterator:
    """(`Read`, None) of every example once over all processes, equally many each."""
    rows = rows_of(batch, process_index, process_count)
    own = share(stream.parts, stream.count, process_index, process_count)
    largest = -(-stream.count // process_count)

    def all_once():
        examples, held = in_order(own), sum(part.take for part in own)
        for first in range(0, largest, rows):
            some = [next(examples) for _ in range(min(rows, max(0, held - first)))]
            yield gather(stream, some, rows), None

    return all_once()


def rows_of(batch, process_index, process_count):
    rows = order.share(batch, process_index, process_count)
    return rows.stop - rows.start


def gather(stream, numbered, rows) -> Read:
    """A batch of `rows` of what was read; what is missing is not valid."""
    parsed = [stream.parse(record) for _, record in numbered]
    missing = rows - len(parsed)
    images, labels = [image for image, _ in parsed], [label for _, label in parsed]
    index = [number for number, _ in numbered]
    return Read(
        index=np.array(index + [0] * missing, np.int32),
        valid=np.arange(rows) < len(parsed),
        image=images + [b""] * missing,
        label=np.array(labels + [0] * missing, np.int32),
    )


def shuffled(parts, bits, buffer, skip):
    """Iterator of (number, record) in the order that `bits` draws, from `skip` on."""
    drawn = np.random.Generator(np.random.PCG64(bits))
    parts = [parts[i] for i in drawn.permutation(len(parts))]
    seed = int(drawn.integers(1 << 31))
    return read(parts, CYCLE, lambda records: records.shuffle(buffer, seed).skip(skip))


def in_order(parts):
    return read(parts, 1, lambda records: records)


def read(parts, cycle, arrange):
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # They are the model's.

    def records(path, first, skip, take):
        held = tf.data.TFRecordDataset(path).skip(skip).take(take)
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + take), held)

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
