# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Prefetching: batches are made and placed on devices ahead of the step."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from g2sd_jax import core, errors

INTERVAL = 60.0  # Seconds between two lines about the same wait.
SLICE = 0.5  # Seconds of a wait after which the run may have been asked to stop.
Batch = TypeVar("Batch")
T = TypeVar("T")


class Meter:
    """Counts the seconds in which at least one thread was inside `with meter:`."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._lock = threading.Lock()
        self._working, self._began, self._seconds = 0, now(), 0.0

    def __enter__(self):
        with self._lock:
            self._count()
            self._working += 1

    def __exit__(self, *_error):
        with self._lock:
            self._count()
            self._working -= 1

    def _count(self):
        """Adds the time since the last change, if any thread worked."""
        before, self._began = self._began, self._now()
        if self._working:
            self._seconds += self._began - before

    def total(self) -> float:
        """Returns the seconds until now."""
        with self._lock:
            self._count()
            return self._seconds

    def around(self, work: Callable[..., T]) -> Callable[..., T]:
        """Wraps a function so that its calls are metered, in whichever threads."""

        def metered(*args, **kwargs):
            with self:
                return work(*args, **kwargs)

        return metered


class Wait(NamedTuple):
    """How long to wait for a batch, and how to report the wait."""

    source: str  # Name of the data source in messages.
    limit: float  # Seconds, `config.data.timeout`.
    interval: float = INTERVAL  # Seconds between two messages.

    def get(self, ready: queue.Queue[T], stopped: Callable[[], bool]) -> T | None:
        """Takes the next item of `ready`; prints a line about the wait every so often.

        Returns:
            The item; None if `stopped()` is true before there is one.

        Raises:
            errors.Hung: nothing came within the limit.
        """
        began, waited, next_message = time.monotonic(), 0.0, self.interval
        while True:
            try:
                until = min(next_message, self.limit)
                return ready.get(timeout=min(SLICE, max(0.0, until - waited)))
            except queue.Empty:
                waited = time.monotonic() - began
            if stopped():
                return None
            if waited < until:
                continue
            status = f"{self.source} has given no batch for {waited:.0f} s"
            if waited >= self.limit:
                raise errors.Hung(
                    f"{status}: config.data.timeout={self.limit:.0f}. Look whether "
                    "what it reads can be reached; the same command goes on from the "
                    "last checkpoint. If it is only slow, raise config.data.timeout."
                )
            # By whichever process waits: the others do not know.
            print(f"{status}; the run ends after {self.limit:.0f} s", flush=True)
            next_message = waited + self.interval


def wait_from_config(config: ConfigDict) -> Wait:
    """Builds the `Wait` of a run for its data, from `config.data`."""
    data = config.data
    where = f" (config.data.path={data.path!r})" if data.path else ""
    source = f"config.data.source={data.source!r}{where}"
    return Wait(source, config.data.timeout)


def first(batches: Iterator[Batch], wait: Wait) -> Batch:
    """Returns the first batch alone, and waits for it no longer than a `Feed` would."""
    feed = Feed(
        itertools.islice(batches, 1),
        place=core.identity,
        ahead=1,
        meter=Meter(),
        wait=wait,
    )
    try:
        return next(feed)
    finally:
        feed.close(seconds=1.0)


class Feed:
    """Iterates over batches that a background thread makes and places ahead of time.

    Reading and the copy to the device thus overlap the step; the order is that of
    `batches`. An error in the thread is raised where the batch is asked for.

    Args:
        batches: host batches of this process. A batch must not be written to after it
            was yielded: on CPUs the placed batch is the same memory.
        place: host batch -> placed batch, such as `parallel.to_global`.
        ahead: number of placed batches that may wait.
        meter: runs while a batch is made and placed. Work that `batches` does ahead, in
            threads of its own, has to be metered too, or a batch seems to take no time.
        wait: how long to wait for a batch.
        stopped: whether the run was asked to stop. Where it is true while a batch is
            waited for, the iteration ends.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        place: Callable[[Batch], Batch],
        ahead: int,
        meter: Meter,
        wait: Wait,
        stopped: Callable[[], bool] = bool,  # Never.
    ):
        self._batches, self._place, self._meter = batches, place, meter
        self._wait, self._stopped = wait, stopped
        self._ready = queue.Queue()
        self._room = threading.Semaphore(ahead)
        self._closed = threading.Event()
        # Batches made, and the meter at that moment: up to now, and when last reported.
        self._made = self._reported = (0, 0.0)
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def _work(self):
        try:
            while self._wait_for_room():
                with self._meter:
                    batch = self._place(next(self._batches))
                self._made = self._made[0] + 1, self._meter.total()
                self._ready.put((batch, None))
        except Exception as error:
            self._ready.put((None, error))
        finally:
            close = getattr(self._batches, "close", None)
            if close:  # Here: a generator can only be closed by the thread it runs in.
                close()

    def _wait_for_room(self) -> bool:
        self._room.acquire()
        return not self._closed.is_set()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = self._wait.get(self._ready, self._stopped)
        if item is None:
            raise StopIteration
        batch, error = item
        if error:
            self._ready.put((None, error))  # The next call raises it again.
            raise error
        self._room.release()
        return batch

    def spent(self) -> tuple[int, float]:
        """Returns (batches made, seconds of work on them) since the last call."""
        (batches, seconds), self._reported = self._reported, self._made
        return self._reported[0] - batches, self._reported[1] - seconds

    def close(self, seconds: float = 10.0) -> None:
        """Ends the thread after its current batch, or abandons it after `seconds`."""
        self._closed.set()
        self._room.release()
        self._thread.join(seconds)
