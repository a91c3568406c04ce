# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The threads that read and decode: their number and their end."""

import contextlib
import functools
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures

from ml_collections import ConfigDict

MOST = 64  # Readers by default: what they make together is what one process can take.
MOMENT = 2.0  # Seconds in which a thread ends that does not hang.

_made = []  # For every `closing` that is entered, the pools made since.


class Pool(futures.Executor):
    """A pool of daemon threads, which may hang in a read without blocking the exit.

    Python waits at its exit for each thread of a `ThreadPoolExecutor`, even for those
    of one that was shut down without waiting.

    Args:
        count: the most threads.
        name: prefix of the threads' names.
    """

    def __init__(self, count: int, name: str):
        self.count, self._name, self.threads = count, name, []
        self._jobs, self._lock = queue.SimpleQueue(), threading.Lock()
        # The threads refer to the queue alone, so that they end with the pool.
        self._end = weakref.finalize(self, self._jobs.put, None)
        if _made:
            _made[-1].add(self)

    def submit(self, call: Callable, /, *args, **kwargs) -> futures.Future:
        """Has a thread call a function; starts one if there are fewer than `count`."""
        future = futures.Future()
        with self._lock:
            if not self._end.alive:
                raise RuntimeError(f"{self._name}: asked for work after shutdown")
            self._jobs.put((future, functools.partial(call, *args, **kwargs)))
            if len(self.threads) < self.count:
                name = f"{self._name}_{len(self.threads)}"
                thread = threading.Thread(
                    target=_work, name=name, args=(self._jobs,), daemon=True
                )
                self.threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads, once their jobs are done or cancelled."""
        with self._lock:
            while cancel_futures and self._end.alive:
                try:
                    self._jobs.get_nowait()[0].cancel()
                except Exception:  # `queue.Empty`; no name is left as Python ends.
                    break
            self._end()
        for thread in self.threads if wait else ():
            thread.join()


def _work(jobs: queue.SimpleQueue) -> None:
    while job := jobs.get():
        future, call = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        del job, future, call  # Else they stay in memory until the next one comes.
    jobs.put(None)  # For the next thread.


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not everywhere.
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def workers(config: ConfigDict) -> int:
    """Readers of a data set: `config.data.workers`, or one a core up to `MOST`."""
    return config.data.workers or min(len(cores()), MOST)


def made_here() -> list[Pool]:
    """The pools made within the innermost `closing`; none outside of any."""
    return list(_made[-1]) if _made else []


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """Ends the pools made within this context, so that a second run starts with none.

    A data set cannot end its own, for it does not know when it is used last. A thread
    that hangs is left after a moment.
    """
    _made.append(weakref.WeakSet())
    try:
        yield
    finally:
        pools = list(_made.pop())
        for executor in pools:
            executor.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + MOMENT
        for thread in [thread for executor in pools for thread in executor.threads]:
            thread.join(max(0.0, until - time.monotonic()))
