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

from g2sd_jax.data import decoder, failures, shared_batches, workers
from g2sd_jax.data.shared_batches import Batch

HERE = 8  # Rows of a batch that are filled without another process.
CHUNK = 32  # Rows that a process fills in one go, at most: about 20 ms.


class Examples(Protocol):
    """Reads and decodes; it is pickled, so it holds no open file and no lock."""

    def empty(self, count: int, training: bool) -> Batch:
        """Returns a batch of `count` rows that are all padding."""

    def place(
        self, batch: Batch, row: int, item: Any, epoch: int | None, index: int
    ) -> None:
        """Fills an empty row.

        Args:
            batch: of `empty`.
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


def fill_rows(
    examples: Examples,
    batch: Batch,
    job: Job,
    fields: dict[str, shared_batches.Field],
    used_before: bool,
) -> list[Failure]:
    """Fills rows of a batch, one after another.

    Args:
        examples: reads and decodes.
        batch: whose rows are filled.
        job: which rows, with what.
        fields: of the batch: what an empty row holds.
        used_before: whether rows may hold anything yet.

    Returns:
        The rows that stay empty.
    """
    failed = []
    for row, index, item in zip(job.rows, job.indices, job.items, strict=True):
        if used_before:
            shared_batches.clear(batch, row, fields)
        try:
            examples.place(batch, row, item, job.epoch, index)
        except (OSError, decoder.Unreadable) as error:
            shared_batches.clear(batch, row, fields)  # It may be filled in part.
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
        fill = self._begin(len(chosen), epoch)
        pending = np.flatnonzero(valid).tolist()
        while True:
            pending = self._replace_known(pending, used, valid, epoch, candidates)
            places = used[pending].tolist()
            indices = [candidates.index(at) for at in places]
            items = [candidates.item(at) for at in places]
            batch, failed = fill(pending, indices, items)
            pending = [row for row, _ in failed]
            for row, reason in failed:
                self._note(candidates, int(used[row]), reason)
            if not pending:
                return batch, used, valid

    def _begin(self, count: int, epoch: int | None) -> Callable:
        """Makes a batch; returns (rows, indices, items) -> (batch, failed rows)."""
        training = epoch is not None
        if count <= HERE:
            batch = self._examples.empty(count, training)
            fields, _ = shared_batches.fields_of(batch, count)

            def fill_here(rows, indices, items):
                job = Job(rows, indices, items, epoch)
                return batch, fill_rows(self._examples, batch, job, fields, False)

            return fill_here
        shared = self._blocks.take(count, training)

        def fill_there(rows, indices, items):
            share = -(-len(rows) * self._batches // self._pool.count)
            step = max(1, min(CHUNK, len(rows), share))
            jobs = [
                Job(*(part[at : at + step] for part in (rows, indices, items)), epoch)
                for at in range(0, len(rows), step)
            ]
            return shared.arrays, self._pool.fill(self._task, shared, jobs)

        return fill_there

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
