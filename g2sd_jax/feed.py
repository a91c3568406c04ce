# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches made and placed ahead of the step, and what that took."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from g2sd_jax import core

OFTEN = 60.0  # Seconds after which a wait is told, and told again.
SLICE = 0.5  # Seconds of a wait after which somebody may have asked to stop.


class Meter:
    """Seconds in which at least one thread was at work, as `with meter:` says."""

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
        """Adds what passed since the last change, if anybody worked."""
        before, self._began = self._began, self._now()
        if self._working:
            self._seconds += self._began - before

    def total(self) -> float:
        with self._lock:
            self._count()
            return self._seconds

    def around(self, work: Callable) -> Callable:
        """The same function, metered in whichever threads call it."""

        def metered(*args, **kwargs):
            with self:
                return work(*args, **kwargs)

        return metered


class Wait(NamedTuple):
    """How long a batch is waited for."""

    source: str  # as a line names it
    limit: float  # seconds, `config.data.timeout`
    often: float = OFTEN

    def get(self, ready: queue.Queue, stopped: Callable[[], bool]):
        """What comes next; says every so often who is waited for, and gives up.

        Nothing if `stopped` says so before it is there.
        """
        began, waited, talk = time.monotonic(), 0.0, self.often
        while True:
            try:
                until = min(talk, self.limit)
                return ready.get(timeout=min(SLICE, max(0.0, until - waited)))
            except queue.Empty:
                waited = time.monotonic() - began
            if stopped():
                return None
            if waited < until:
                continue
            told = f"{self.source} has given no batch for {waited:.0f} s"
            if waited >= self.limit:
                raise core.Hung(
                    f"{told}: config.data.timeout={self.limit:.0f}. Look whether what "
                    "it reads can be reached; the same command goes on from the last "
                    "checkpoint. If it is only slow, raise config.data.timeout."
                )
            # By whichever process waits: the others do not know.
            print(f"{told}; the run ends after {self.limit:.0f} s", flush=True)
            talk = waited + self.often


def wait_of(config) -> Wait:
    """How long a run waits for its own data."""
    data = config.data
    where = f" (config.data.path={data.path!r})" if data.path else ""
    source = f"config.data.source={data.source!r}{where}"
    return Wait(source, config.data.timeout)


def first(batches: Iterator, wait: Wait):
    """The first of `batches` alone, waited for no longer than a `Feed` would."""
    few = itertools.islice(batches, 1)
    alone = Feed(few, core.identity, 1, Meter(), wait)
    try:
        return next(alone)
    finally:
        alone.close(seconds=1.0)


class Feed:
    """Makes and places batches in a thread of its own, a bounded number ahead.

    So reading and the copy to the device overlap the step; the order is that of the
    batches. What goes wrong in the thread is raised where the batch is asked for.

    Args:
        batches: of one process. What they handed over must not be written to again: on
            CPUs the placed batch is the same memory.
        place: host batch -> placed batch, such as `parallel.to_global`.
        ahead: how many placed batches may wait.
        meter: runs while a batch is made and placed. Work that `batches` does ahead, in
            threads of its own, has to be metered too, or a batch seems to take no time.
        wait: how long a batch is waited for.
        stopped: () -> whether nobody wants the batch that is waited for any more: then
            the batches end.
    """

    def __init__(
        self,
        batches: Iterator,
        place: Callable,
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
        self._made = self._told = (0, 0.0)  # Batches, and the meter when they were.
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

    def __iter__(self):
        return self

    def __next__(self):
        came = self._wait.get(self._ready, self._stopped)
        if came is None:
            raise StopIteration
        batch, error = came
        if error:
            self._ready.put((None, error))  # Asked again, it is still so.
            raise error
        self._room.release()
        return batch

    def spent(self) -> tuple[int, float]:
        """Batches made since this was asked last, and seconds of work until then."""
        before, self._told = self._told, self._made
        return self._told[0] - before[0], self._told[1] - before[1]

    def close(self, seconds: float = 10.0):
        """Ends the thread after the batch it is at; a source that hangs is left."""
        self._closed.set()
        self._room.release()
        self._thread.join(seconds)
