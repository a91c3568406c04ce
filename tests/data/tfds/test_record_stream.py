# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFRecord files read one after another: once an epoch, from any step, by any split."""

import warnings

import numpy as np
import pytest

from g2sd_jax.data.tfds import record_stream

with warnings.catch_warnings():  # Of the library's own making, at import.
    warnings.simplefilter("ignore")
    import tensorflow as tf

SIZES = (7, 1, 12, 3)  # Records of each file.
COUNT = sum(SIZES)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Records that are their own number as text."""
    folder = tmp_path_factory.mktemp("records")
    parts, first = [], 0
    for number, size in enumerate(SIZES):
        path = folder / str(number)
        # The second of two slices of each file: one record before it is not ours.
        records = [b"x", *(b"%d" % (first + i) for i in range(size))]
        with tf.io.TFRecordWriter(str(path)) as file:
            for record in records:
                file.write(record)
        parts.append(record_stream.Part(str(path), first, 1, size))
        first += size
    return record_stream.Stream(
        count=COUNT,
        parts=tuple(parts),
        parse=lambda record: (record, int(record)),
        buffer=4,
    )


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def seen(batches):
    batches = [batch for batch, _ in batches]
    for batch in batches:
        index, label = batch.index[batch.valid], batch.label[batch.valid]
        np.testing.assert_array_equal(index, label)
    return [int(i) for batch in batches for i in batch.index[batch.valid]]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_sees_every_example_once(stream, processes):
    batch, per_epoch = 6, COUNT // 6
    own = [
        record_stream.train_batches(stream, batch, 5, 0, process, processes)
        for process in range(processes)
    ]
    parts = [taken(batches, 2 * per_epoch) for batches in own]
    for epoch in range(2):
        window = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        whole = [i for part in parts for i in seen(part[window])]
        assert len(whole) == len(set(whole)) == per_epoch * batch
    assert {len(b.image) for part in parts for b, _ in part} == {batch // processes}
    first, second = (seen(parts[0][e * per_epoch :][:per_epoch]) for e in (0, 1))
    assert first != second and first != sorted(first)


def test_files_and_neighbours_are_shuffled(stream):
    order = seen(taken(record_stream.train_batches(stream, COUNT, 5), 1))
    again = seen(taken(record_stream.train_batches(stream, COUNT, 5), 1))
    other = seen(taken(record_stream.train_batches(stream, COUNT, 6), 1))
    assert order == again and order != other
    assert sorted(order) == sorted(other) == list(range(COUNT))


def test_files_come_in_another_order_every_epoch(stream):
    unbuffered = stream._replace(buffer=1)
    batches = record_stream.train_batches(unbuffered, COUNT, 5)
    epochs = [seen(taken(batches, 1)) for _ in range(6)]
    assert len({epoch[0] for epoch in epochs}) > 1


@pytest.mark.parametrize("start", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("process", [0, 1])
def test_a_run_starts_anywhere(stream, start, process):
    whole = record_stream.train_batches(stream, 6, 5, 0, process, 2)
    expected = taken(whole, start + 4)[start:]
    started = record_stream.train_batches(stream, 6, 5, start, process, 2)
    for (ours, epoch), (theirs, same) in zip(taken(started, 4), expected, strict=True):
        assert epoch == same
        assert ours.image == theirs.image
        np.testing.assert_array_equal(ours.index, theirs.index)


@pytest.mark.parametrize(("batch", "processes"), [(6, 1), (6, 3), (4, 2), (40, 2)])
def test_evaluation_sees_every_example_once(stream, batch, processes):
    parts = [
        list(record_stream.eval_batches(stream, batch, p, processes))
        for p in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    assert [i for part in parts for i in seen(part)] == list(range(COUNT))
    rows = batch // processes
    assert {b.valid.shape for part in parts for b, _ in part} == {(rows,)}


def test_a_process_without_examples_yields_padding(stream):
    few = stream._replace(count=2, parts=(stream.parts[0]._replace(take=2),))
    parts = [list(record_stream.eval_batches(few, 4, p, 4)) for p in range(4)]
    assert [seen(part) for part in parts] == [[], [0], [], [1]]
    assert {len(part) for part in parts} == {1}


def test_an_epoch_without_a_batch_is_refused(stream):
    with pytest.raises(ValueError, match=r"config.batch=24 but only 23 training"):
        record_stream.train_batches(stream, 24, 0)
