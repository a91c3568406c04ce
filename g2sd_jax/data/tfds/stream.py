# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFDS sets that are not on a local disk: decodes a `record_stream` in its order."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import crops, filling, order, pipeline, reading
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data.tfds import files as tfds_files
from g2sd_jax.data.tfds import record_stream, tfrecord

# (undecoded batch, epoch) -> arrays [b, ...]
Decode = Callable[[record_stream.UndecodedBatch, int | None], order.Batch]


def dataset(
    config: ConfigDict, prepared_split: tfds_files.PreparedSplit, split: str
) -> datasets.Dataset:
    """The `Dataset` of a split that is read from its beginning.

    Args:
        config: the recipe.
        prepared_split: the files of the split.
        split: its name.
    """
    if config.data.class_list:
        raise ValueError(
            f"config.data.class_list={config.data.class_list!r}: which classes occur "
            f"in {prepared_split.origin} is not known before all of it is read; copy "
            "it to a local disk."
        )
    stream = open_split(prepared_split, config.data.shuffle_buffer)
    if config.data.limit is not None:
        stream = stream._replace(count=min(stream.count, config.data.limit))
    decode = Decoder(config, prepared_split, split, stream.count).batch
    ahead = config.data.prefetch

    def fetch(indices, epoch=None):
        """Some of the first examples, which show what all look like."""
        if max(indices) >= datasets.FIRST:
            raise ValueError(
                f"{prepared_split.origin} is not on a local disk, so no example can be "
                "picked from it (config.monitor.neighbours does); copy it to one."
            )
        beginning = stream._replace(count=min(datasets.FIRST, stream.count))
        [(undecoded, _)] = record_stream.eval_batches(beginning, datasets.FIRST)
        batch = decode(undecoded, None)
        return {name: array[indices] for name, array in batch.items()}

    def original(index):
        return {name: array[0] for name, array in fetch([index]).items()}

    return datasets.Dataset(
        stream.count,
        prepared_split.classes,
        fetch,
        original,
        ahead=ahead,
        eval_crop=crops.evaluation_share(
            config.data.eval_crop, config.model.image_size
        ),
        stream=make_streaming(stream, decode, ahead),
    )


class Streaming(NamedTuple):
    """The batches of a set without random access, in place of those of `order`."""

    train_batches: Callable  # As `order.train_batches`, without the data set.
    eval_batches: Callable  # As `order.eval_batches`, without the data set.
    around: Callable[[Callable], "Streaming"]  # wrap -> itself, its decoding wrapped.


def make_streaming(
    stream: record_stream.Stream, decode: Decode, ahead: int
) -> Streaming:
    """The batches of a stream.

    Args:
        stream: the split.
        decode: makes the arrays of a batch.
        ahead: batches to decode before they are asked for.
    """

    def train(batch, seed, start_step=0, process_index=0, process_count=1):
        undecoded = record_stream.train_batches(
            stream, batch, seed, start_step, process_index, process_count
        )
        return order.read_ahead(lambda pair: decode(*pair), undecoded, ahead)

    def evaluate(batch, process_index=0, process_count=1):
        undecoded = record_stream.eval_batches(
            stream, batch, process_index, process_count
        )
        decode_for_evaluation = lambda pair: with_originals(decode(*pair))
        return order.read_ahead(decode_for_evaluation, undecoded, ahead)

    around = lambda wrap: make_streaming(stream, wrap(decode), ahead)
    return Streaming(train, evaluate, around)


def open_split(
    prepared_split: tfds_files.PreparedSplit, buffer: int
) -> record_stream.Stream:
    """The `Stream` of a split, which is shuffled `buffer` examples at a time."""

    def parse(record):
        start, end, label = tfrecord.locate_picture(
            record, 0, len(record), prepared_split.image, prepared_split.label
        )
        return record[start:end], label

    firsts = np.cumsum([0] + [part.take for part in prepared_split.parts]).tolist()
    parts = tuple(
        record_stream.Part(str(part.filename), first, part.skip, part.take)
        for part, first in zip(prepared_split.parts, firsts, strict=False)
    )
    return record_stream.Stream(firsts[-1], parts, parse, buffer)


class Decoder:
    """Decodes batches.

    Args:
        config: the recipe.
        prepared_split: the files of the split.
        split: its name in the list of bad examples.
        count: examples of the split.
    """

    def __init__(
        self,
        config: ConfigDict,
        prepared_split: tfds_files.PreparedSplit,
        split: str,
        count: int,
    ):
        self._config, self._split = config, split
        self._prepared_split = prepared_split
        pictures = pipeline.examples(config, reading.Inline())
        self._filler = filling.Filler(config, split, count, pictures)

    def batch(
        self, undecoded: record_stream.UndecodedBatch, epoch: int | None
    ) -> order.Batch:
        """Decodes a batch to arrays [b, ...].

        In training the next readable picture of the batch replaces an unreadable one;
        in evaluation, where `epoch` is None, the row is not valid.
        """
        rows = len(undecoded.image)
        index = lambda at: int(undecoded.index[at])
        candidates = filling.Candidates(
            count=rows,
            item=undecoded.image.__getitem__,
            name=lambda at: f"{self._config.data.source}/{self._split}#{index(at)}",
            origin=f"{self._prepared_split.origin}, in one batch",
            index=index,
        )
        arrays, used, valid = self._filler.fill(
            np.arange(rows), epoch, candidates, undecoded.valid
        )
        if self._prepared_split.label is not None:
            label = undecoded.label[used]
            arrays = {**arrays, "label": label}
            datasets.check_labels(
                label[valid], self._config.data.classes, self._prepared_split.origin
            )
        return {**arrays, "index": undecoded.index[used], "valid": valid}


def with_originals(batch: order.Batch) -> tuple[order.Batch, list[dict]]:
    """Sorts the valid rows of a batch to the front; returns it and their originals."""
    rank = np.argsort(~batch["valid"], kind="stable")
    batch = {name: array[rank] for name, array in batch.items()}
    if "label" not in batch:
        return batch, [{} for _ in range(batch["valid"].sum())]
    valid_labels = batch["label"][batch["valid"]]
    return batch, [{"label": label} for label in valid_labels]
