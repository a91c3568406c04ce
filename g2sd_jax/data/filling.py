# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fills the rows of a batch: each with an example, or with the next one if it is bad.

What reads and decodes an example is an `Examples`, which can be sent to a process. Few
rows are filled by the thread that asks; many by worker processes, in chunks, so that
the interpreter that trains only says which example belongs into which row.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import decoder, failures
from g2sd_jax.data.processes import shared_batches, workers
from g2sd_jax.data.processes.shared_batches import Batch

HERE = 8  # Rows of a batch that are filled without another process.
CHUNK = 64  # Rows that a process fills in one go, at most: about 40 ms.


class Examples(Protocol):
    """Reads and decodes; it is pickled, so it holds no open file and no lock."""

    def empty(self, count: int, training: bool) -> Batch:
        """Returns a batch of `count` rows that are all padding."""

    def place(
        self, batch: Batch, row: int, item: Any, epoch: int | None, index: int
    ) -> None:
        """Fills a row, all of it: it may hold another example before.

        Args:
            batch: as of `empty`.
            row: in it.
            item: what the example is read by, such as its place.
            epoch: from which, with the index, all that is random is drawn; None in
                evaluation.
            index: of the example.

        Raises:
            OSError, decoder.Unreadable: the example cannot be read, others may be.
            ValueError: a mistake that ends the run.
        """


class Candidates(NamedTuple):
    """The examples that rows may be filled with."""

    count: int
    item: Callable[[int], Any]  # What `Examples.place` reads a candidate by.
    name: Callable[[int], str]  # For the list of bad examples.
    origin: str  # What an error calls all of them.
    index: Callable[[int], int] = int  # Of a candidate within its split.


class Job(NamedTuple):
    """Rows of one batch that are filled in one go."""

    rows: Sequence[int]
    indices: Sequence[int]  # Of the examples.
    items: Sequence[Any]
    epoch: int | None


Failure = tuple[int, str]  # (row, why its example cannot be read)


def fill_rows(examples: Examples, batch: Batch, job: Job) -> list[Failure]:
    """Fills rows of a batch, one after another.

    Args:
        examples: reads and decodes.
        batch: whose rows are filled.
        job: which rows, with what.

    Returns:
        The rows whose examples cannot be read; they may hold anything.
    """
    failed = []
    for row, index, item in zip(job.rows, job.indices, job.items, strict=True):
        try:
            examples.place(batch, row, item, job.epoch, index)
        except (OSError, decoder.Unreadable) as error:
            failed.append((row, str(error)))
    return failed


class Filler:
    """Fills batches of one split.

    Args:
        config: the recipe.
        split: its name in the list of bad examples.
        count: examples of the split.
        examples: reads and decodes them.
    """

    def __init__(self, config: ConfigDict, split: str, count: int, examples: Examples):
        self._config, self._split, self._count = config, split, count
        self._examples = examples
        self._pool = workers.pool(config)
        self._task = workers.Task(examples)
        self._blocks = shared_batches.Blocks(examples.empty)
        self._batches = 1 + config.data.prefetch  # That are filled at once.
        self._bad, self._lock = set(), threading.Lock()

    def fill(
        self,
        chosen: np.ndarray,
        epoch: int | None,
        candidates: Candidates,
        wanted: np.ndarray | None = None,
    ) -> tuple[Batch, np.ndarray, np.ndarray]:
        """Fills a batch.

        An example that cannot be read is listed once. In training the next readable
        candidate takes its place, in evaluation its row is not valid: it would be
        evaluated twice.

        Args:
            chosen: [b] integers, the candidate that belongs into each row.
            epoch: None evaluates.
            candidates: that may be chosen.
            wanted: [b] bool, the rows to be filled; the others stay empty, and are not
                valid. None: all.

        Returns:
            The batch, [b] int32 the candidate in each row, and [b] bool whether the row
            is valid.
        """
        used, valid = np.array(chosen, np.int32), np.ones(len(chosen), bool)
        if wanted is not None:
            valid &= wanted
        batch, fill_some = self._begin(len(chosen), epoch is not None)
        pending = np.flatnonzero(valid).tolist()
        while pending:
            pending = self._replace_known(pending, used, valid, epoch, candidates)
            places = used[pending].tolist()
            job = Job(
                pending,
                [candidates.index(at) for at in places],
                [candidates.item(at) for at in places],
                epoch,
            )
            failed = fill_some(job)
            for row, reason in failed:
                self._note(candidates, int(used[row]), reason)
            pending = [row for row, _ in failed]
        if not valid.all():
            empty = self._examples.empty(1, epoch is not None)
            for name, array in shared_batches.with_extent(empty).items():
                batch[name][~valid] = array
        return shared_batches.without_extent(batch), used, valid

    def _begin(
        self, count: int, training: bool
    ) -> tuple[Batch, Callable[[Job], list[Failure]]]:
        """A batch of `count` rows, and what fills some of them as by `fill_rows`."""
        if count <= HERE:
            batch = shared_batches.with_extent(self._examples.empty(count, training))
            return batch, lambda job: fill_rows(self._examples, batch, job)
        shared = self._blocks.take(count, training)

        def fill_some(job):
            rows = len(job.rows)
            share = -(-rows * self._batches // self._pool.count)
            step = max(1, min(CHUNK, rows, share))
            columns = job.rows, job.indices, job.items
            parts = [
                Job(*(column[at : at + step] for column in columns), job.epoch)
                for at in range(0, rows, step)
            ]
            return self._pool.fill(self._task, shared, parts)

        return shared.arrays, fill_some

    def _replace_known(
        self,
        rows: list[int],
        used: np.ndarray,
        valid: np.ndarray,
        epoch: int | None,
        candidates: Candidates,
    ) -> list[int]:
        """Replaces examples that are known to be bad; returns the rows to be filled."""
        if not self._bad:
            return rows
        to_fill = []
        for row in rows:
            first = int(used[row])
            if candidates.index(first) not in self._bad:
                to_fill.append(row)
            elif epoch is None:
                valid[row] = False
            else:
                used[row] = self._next_readable(first, candidates)
                to_fill.append(row)
        return to_fill

    def _next_readable(self, first: int, candidates: Candidates) -> int:
        """The next candidate that is not known to be bad."""
        for step in range(1, candidates.count):
            at = (first + step) % candidates.count
            if candidates.index(at) not in self._bad:
                return at
        raise ValueError(
            f"{candidates.origin}: none of {candidates.count} examples can be read."
        )

    def _note(self, candidates: Candidates, at: int, reason: str) -> None:
        """Lists a bad example, and remembers it: it is not read again."""
        index, name = candidates.index(at), candidates.name(at)
        with self._lock:
            self._bad.add(index)
        failures.note(self._config, self._split, self._count, index, name, reason)
