# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFDS sets that are not on a local disk: `record_stream`, decoded as it comes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from g2sd_jax.data import (
    crops,
    decoder,
    failures,
    order,
    pipeline,
    record_stream,
    tfrecord,
    threads,
)
from g2sd_jax.data import dataset as datasets


def dataset(config, found, split) -> datasets.Dataset:
    """A split that is decoded as it comes.

    Args:
        config: the whole recipe.
        found: a `tfds_source.Found`.
        split: its name.
    """
    if config.data.class_list:
        raise ValueError(
            f"config.data.class_list={config.data.class_list!r}: which classes occur "
            f"in {found.origin} is not known before all of it is read; copy it to a "
            "local disk."
        )
    stream = open_split(found, config.data.shuffle_buffer)
    if config.data.limit is not None:
        stream = stream._replace(count=min(stream.count, config.data.limit))
    decode, ahead = (
        Decoder(config, found, split, stream.count).batch,
        config.data.prefetch,
    )

    def fetch(indices, epoch=None):
        """The first examples alone, which tell what all look like."""
        if max(indices) >= datasets.FIRST:
            raise ValueError(
                f"{found.origin} is not on a local disk, so no example can be picked "
                "from it (config.signal.neighbours does); copy it to one."
            )
        few = stream._replace(count=min(datasets.FIRST, stream.count))
        [batch] = (
            decode(*asked) for asked in record_stream.eval_batches(few, datasets.FIRST)
        )
        return {name: array[indices] for name, array in batch.items()}

    def original(index):
        return {name: array[0] for name, array in fetch([index]).items()}

    return datasets.Dataset(
        stream.count,
        found.classes,
        fetch,
        original,
        ahead=ahead,
        eval_crop=crops.evaluation_share(
            config.data.eval_crop, config.model.image_size
        ),
        stream=streaming(stream, decode, ahead),
    )


class Streaming(NamedTuple):
    """What `order` leaves to a set without random access."""

    train_batches: Callable  # As `order.train_batches`, without the data set.
    eval_batches: Callable
    around: Callable  # (wrap) -> the same, with its decoding wrapped


def streaming(stream, decode, ahead) -> Streaming:
    """The batches of a stream, as `decode` makes them."""

    def train(*given):
        read = record_stream.train_batches(stream, *given)
        return order.read_ahead(lambda asked: decode(*asked), read, ahead)

    def evaluate(*given):
        read = record_stream.eval_batches(stream, *given)
        return order.read_ahead(lambda asked: judged(decode(*asked)), read, ahead)

    around = lambda wrap: streaming(stream, wrap(decode), ahead)
    return Streaming(train, evaluate, around)


def open_split(found, buffer) -> record_stream.Stream:
    """The `Stream` of a `tfds_source.Found`."""

    def parse(record):
        whole = 0, len(record), found.image, found.label
        start, end, label = tfrecord.picture(record, *whole)
        return record[start:end], label

    firsts = np.cumsum([0] + [part.take for part in found.parts]).tolist()
    parts = tuple(
        record_stream.Part(str(part.filename), first, part.skip, part.take)
        for part, first in zip(found.parts, firsts, strict=False)
    )
    return record_stream.Stream(firsts[-1], parts, parse, buffer)


class Decoder:
    """Makes a batch of what was read."""

    def __init__(self, config, found, split, count):
        decoder.check_channels(config.model.channels)
        self._config, self._found, self._split = config, found, split
        self._count = count
        self._frames = pipeline.Training(config), pipeline.Evaluating(config)
        self._pool = threads.pool(config)

    def batch(self, held: record_stream.Read, epoch) -> dict:
        """Arrays [b, ...]; of a picture that is bad, the next of the batch instead.

        Where the epoch is None nothing is put instead, and the row is not valid.
        """
        frames = self._frames[epoch is None]
        arrays = frames.empty(len(held.image))
        place = functools.partial(self._place, held, frames, arrays, epoch)
        used = np.array(list(self._pool.map(place, range(len(held.image)))))
        found = used >= 0
        rows = np.where(found, used, np.arange(len(used)))
        if self._found.label is not None:
            arrays["label"] = label = held.label[rows]
            about = self._config.data.classes, self._found.origin
            datasets.check_labels(label[found], *about)
        return {**arrays, "index": held.index[rows], "valid": found}

    def _place(self, held, frames, arrays, epoch, row) -> int:
        """The row whose picture was put here, or -1."""
        if not held.valid[row]:
            return -1
        rows = len(held.image)
        for at in ((row + step) % rows for step in range(rows)):
            index = int(held.index[at])
            try:
                channels = self._config.model.channels
                picture = decoder.opened(held.image[at], channels)
                frames.place(arrays, row, picture, epoch, index)
                return at
            except decoder.Unreadable as error:
                name = f"{self._config.data.source}/{self._split}#{index}"
                about = self._split, self._count, index, name, error
                failures.note(self._config, *about)
                if epoch is None:
                    return -1
        raise ValueError(f"{self._found.origin}: a whole batch cannot be read.")


def judged(batch):
    """A batch whose valid rows come first, and what evaluators are told of those."""
    rank = np.argsort(~batch["valid"], kind="stable")
    batch = {name: array[rank] for name, array in batch.items()}
    if "label" not in batch:
        return batch, [{} for _ in range(batch["valid"].sum())]
    kept = batch["label"][batch["valid"]]
    return batch, [{"label": label} for label in kept]
