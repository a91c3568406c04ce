# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The order of examples: batches as a function of seed and step alone."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data.processes import threads

Request, Result = TypeVar("Request"), TypeVar("Result")
Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=2)  # For speed alone: a cold cache gives the same order.
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """[count] int64, the order in which one epoch visits the examples."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(bits).permutation(count)
    order.setflags(write=False)
    return order


def process_rows(batch: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch % process_count:
        raise ValueError(
            f"config.batch={batch} cannot be shared by {process_count} processes; use "
            f"a multiple of {process_count}."
        )
    rows = batch // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def train_batches(
    dataset: datasets.Dataset,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The endless batches of one process, from any step on.

    Each process takes its slice of the global batch, so that the global order is the
    same for any number of them. An epoch's last incomplete batch is dropped.

    Args:
        dataset: the training split.
        batch: examples of all processes together.
        seed: the order of epoch e is a function of `(seed, e)`.
        start_step: the step of the first batch; examples before it are not read.
        process_index: of this process.
        process_count: how many processes there are.

    Returns:
        Iterator of dicts of arrays [b, ...], `index` int32 and `valid` among them.
    """
    if dataset.stream is not None:
        return dataset.stream.train_batches(
            batch, seed, start_step, process_index, process_count
        )
    rows = process_rows(batch, process_index, process_count)
    per_epoch = dataset.count // batch
    if per_epoch == 0:
        raise ValueError(
            f"config.batch={batch} but only {dataset.count} training examples: an "
            f"epoch would hold no batch; use a batch of at most {dataset.count}."
        )

    def requests():
        for step in itertools.count(start_step):
            epoch, place = divmod(step, per_epoch)
            order = epoch_order(seed, epoch, dataset.count)
            yield order[place * batch : (place + 1) * batch][rows], epoch

    def read(request):
        indices, epoch = request
        return fetch_batch(dataset, indices, epoch)

    return read_ahead(read, requests(), dataset.ahead)


def eval_batches(
    dataset: datasets.Dataset,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Batch, list[dict]]]:
    """Every example exactly once over all processes, in order, the end padded.

    All processes yield equally many batches, some of which may have no valid row.

    Args:
        dataset: the evaluation split.
        batch: examples of all processes together.
        process_index: of this process.
        process_count: how many processes there are.

    Returns:
        Iterator of `(batch, examples)`: a dict of arrays [b, ...] whose `valid` marks
        the real rows, and the originals of those.
    """
    if dataset.stream is not None:
        return dataset.stream.eval_batches(batch, process_index, process_count)
    rows = process_rows(batch, process_index, process_count)

    def read(first):
        wanted = np.arange(first, first + batch)[rows]
        inside = wanted < dataset.count
        needed, back = np.unique(np.where(inside, wanted, first), return_inverse=True)
        arrays = fetch_batch(dataset, needed)
        valid = arrays["valid"][back] & inside
        # Rows that evaluators skip stand last: padding, and unreadable examples.
        rank = np.argsort(~valid, kind="stable")
        if not valid.all():
            arrays = {name: array[back[rank]] for name, array in arrays.items()}
            arrays["valid"] = valid[rank]
        valid_indices = arrays["index"][arrays["valid"]]
        return arrays, [dataset.original(int(index)) for index in valid_indices]

    return read_ahead(read, iter(range(0, dataset.count, batch)), dataset.ahead)


def fetch_batch(
    dataset: datasets.Dataset, indices: np.ndarray, epoch: int | None = None
) -> Batch:
    """`dataset.fetch`, with `index` and `valid` also where the data set has neither."""
    defaults = {"index": indices.astype(np.int32), "valid": np.ones(len(indices), bool)}
    return defaults | dataset.fetch(indices, epoch)


def read_ahead(
    read: Callable[[Request], Result], requests: Iterator[Request], ahead: int
) -> Iterator[Result]:
    """`map(read, requests)` by threads, up to `ahead` results early.

    The first is made alone, so that a caller that takes one batch waits for no other.
    """
    if not ahead:
        yield from map(read, requests)
        return
    readers = threads.Pool(ahead + 1, "ahead")
    waiting = collections.deque()
    try:
        for depth in itertools.chain([1], itertools.repeat(ahead + 1)):
            for request in itertools.islice(requests, depth - len(waiting)):
                waiting.append(readers.submit(read, request))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
