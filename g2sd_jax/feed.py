# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches made and placed ahead of the step, and what that took."""

import queue
import threading
import time
from collections.abc import Callable, Iterator


class Feed:
    """Makes and places batches in a thread of its own, a bounded number ahead.

    So reading and the copy to the device overlap the step; the order is that of the
    batches. What goes wrong in the thread is raised where the batch is asked for.

    Args:
        batches: of one process. One that reads ahead by itself has `busy`, a growing
            number of seconds in which it worked rather than waited for room (of several
            workers: their mean); of others, the time until they hand a batch over
            counts. What was handed over must not be written to again: on CPUs the
            placed batch is the same memory.
        place: host batch -> placed batch, such as `parallel.to_global`.
        ahead: how many placed batches may wait.
        now: seconds from anywhere, growing.
    """

    def __init__(
        self,
        batches: Iterator,
        place: Callable,
        ahead: int,
        now: Callable[[], float] = time.perf_counter,
    ):
        self._batches, self._place, self._now = batches, place, now
        self._ready = queue.Queue()
        self._room = threading.Semaphore(ahead)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._made, self._seconds, self._busy = 0, 0.0, 0.0
        self._reads_ahead = hasattr(batches, "busy")
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def _work(self):
        try:
            while self._wait_for_room():
                began = self._now()
                batch = next(self._batches)
                if self._reads_ahead:  # Its own seconds are asked for in `spent`.
                    began = self._now()
                batch = self._place(batch)
                with self._lock:
                    self._made += 1
                    self._seconds += self._now() - began
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
        batch, error = self._ready.get()
        if error:
            self._ready.put((None, error))  # Asked again, it is still so.
            raise error
        self._room.release()
        return batch

    def spent(self) -> tuple[int, float]:
        """Batches made since this was asked last, and the seconds they took."""
        with self._lock:
            made, seconds = self._made, self._seconds
            self._made, self._seconds = 0, 0.0
        if self._reads_ahead:
            before, self._busy = self._busy, self._batches.busy
            seconds += self._busy - before
        return made, seconds

    def close(self, patience: float = 10.0):
        """Ends the thread after the batch it is at; a source that hangs is left."""
        self._closed.set()
        self._room.release()
        self._thread.join(patience)
