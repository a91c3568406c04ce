# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which example comes when: batches as a function of seed and step alone."""

import functools

import numpy as np


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
    rows = share(batch, process_index, process_count)
    per_epoch = dataset.count // batch
    if per_epoch == 0:
        raise ValueError(
            f"config.batch={batch} but only {dataset.count} training examples: an "
            f"epoch would hold no batch; use a batch of at most {dataset.count}."
        )

    def endless():
        step = start_step
        while True:
            epoch, place = divmod(step, per_epoch)
            order = epoch_order(seed, epoch, dataset.count)
            yield collect(dataset, order[place * batch : (place + 1) * batch][rows])
            step += 1

    return endless()


def eval_batches(dataset, batch, process_index=0, process_count=1):
    """Every example exactly once over all processes, in order, the end padded.

    All processes yield equally many batches; one may hold nothing that is valid.

    Returns:
        Iterator of `(batch, examples)`: a dict of arrays [b, ...] whose `valid` marks
        the real rows, and the originals of those.
    """
    rows = share(batch, process_index, process_count)

    def all_once():
        for first in range(0, dataset.count, batch):
            wanted = np.arange(first, first + batch)[rows]
            valid = wanted < dataset.count
            held = collect(dataset, np.where(valid, wanted, first), valid)
            yield held, [dataset.original(int(index)) for index in wanted[valid]]

    return all_once()


def collect(dataset, indices, valid=None):
    if valid is None:
        valid = np.ones(len(indices), bool)
    index = indices.astype(np.int32)
    return {**dataset.fetch(indices), "index": index, "valid": valid}
