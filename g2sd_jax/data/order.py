# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which example comes when: batches as a function of seed and step alone."""

import collections
import functools
import itertools

import numpy as np

from g2sd_jax.data import threads


@functools.lru_cache(maxsize=2)  # For speed alone: a cold cache gives the same order.
def epoch_order(seed, epoch, count):
    """[count] int64, the order in which one epoch visits the examples."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(bits).permutation(count)
    order.setflags(write=False)
    return order


def share(batch, process_index, process_count):
    """The rows of a global batch that one process holds, as a slice."""
    if batch % process_count:
        raise ValueError(
            f"config.batch={batch} cannot be shared by {process_count} processes; use "
            f"a multiple of {process_count}."
        )
    rows = batch // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def train_batches(dataset, batch, seed, start_step=0, process_index=0, process_count=1):
    """The endless batches of one process, from any step on.

    Each process takes its slice of the global batch, so that the global order is the
    same for any number of them. An epoch's last incomplete batch is dropped.

    Args:
        dataset: a `dataset.Dataset`.
        batch: examples of all processes together.
        seed: the order of epoch e is a function of `(seed, e)`.
        start_step: the step of the first batch; what lies before is not read.
        process_index: this process.
        process_count: how many processes there are.
    Returns:
        Iterator of dicts of arrays [b, ...], `index` int32 and `valid` among them.
    """
    if dataset.stream is not None:
        given = batch, seed, start_step, process_index, process_count
        return dataset.stream.train_batches(*given)
    rows = share(batch, process_index, process_count)
    per_epoch = dataset.count // batch
    if per_epoch == 0:
        raise ValueError(
            f"config.batch={batch} but only {dataset.count} training examples: an "
            f"epoch would hold no batch; use a batch of at most {dataset.count}."
        )

    def wanted():
        for step in itertools.count(start_step):
            epoch, place = divmod(step, per_epoch)
            order = epoch_order(seed, epoch, dataset.count)
            yield order[place * batch : (place + 1) * batch][rows], epoch

    return read_ahead(lambda asked: collect(dataset, *asked), wanted(), dataset.ahead)


def eval_batches(dataset, batch, process_index=0, process_count=1):
    """Every example exactly once over all processes, in order, the end padded.

    All processes yield equally many batches; one may hold nothing that is valid.

    Returns:
        Iterator of `(batch, examples)`: a dict of arrays [b, ...] whose `valid` marks
        the real rows, and the originals of those.
    """
    if dataset.stream is not None:
        return dataset.stream.eval_batches(batch, process_index, process_count)
    rows = share(batch, process_index, process_count)

    def read(first):
        wanted = np.arange(first, first + batch)[rows]
        inside = wanted < dataset.count
        needed, back = np.unique(np.where(inside, wanted, first), return_inverse=True)
        held = collect(dataset, needed)
        valid = held["valid"][back] & inside
        # What evaluators skip stands last, be it padding or an unreadable example.
        rank = np.argsort(~valid, kind="stable")
        if not valid.all():
            held = {name: array[back[rank]] for name, array in held.items()}
            held["valid"] = valid[rank]
        kept = held["index"][held["valid"]]
        return held, [dataset.original(int(index)) for index in kept]

    return read_ahead(read, iter(range(0, dataset.count, batch)), dataset.ahead)


def collect(dataset, indices, epoch=None):
    known = {"index": indices.astype(np.int32), "valid": np.ones(len(indices), bool)}
    return known | dataset.fetch(indices, epoch)


def read_ahead(read, wanted, ahead):
    """`map(read, wanted)`, so many results made before they are asked for.

    The first is made alone: whoever only looks at one batch does not pay for more.
    """
    if not ahead:
        yield from map(read, wanted)
        return
    readers = threads.Pool(ahead + 1, "ahead")
    waiting = collections.deque()
    try:
        for depth in itertools.chain([1], itertools.repeat(ahead + 1)):
            for asked in itertools.islice(wanted, depth - len(waiting)):
                waiting.append(readers.submit(read, asked))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
