# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The threads that read and decode: how many there are, and that they end."""

import contextlib
import functools
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent import futures

MOMENT = 2.0  # Seconds in which a thread ends that does not hang.

_made = []  # Of every `closing` that is entered: the pools made since.


class Pool(futures.Executor):
    """A few threads that do not keep the process: one may hang in what it reads.

    Python waits at its exit for each thread of a `ThreadPoolExecutor`, even for those
    of one that was shut down without waiting.
    """

    def __init__(self, count: int, name: str):
        self._count, self._name, self.threads = count, name, []
        self._asked, self._lock = queue.SimpleQueue(), threading.Lock()
        # The threads know the queue alone: they end with whoever could ask them.
        self._end = weakref.finalize(self, self._asked.put, None)
        if _made:
            _made[-1].add(self)

    def submit(self, call: Callable, /, *args, **kwargs) -> futures.Future:
        future = futures.Future()
        with self._lock:
            if not self._end.alive:
                raise RuntimeError(f"{self._name}: asked for work after shutdown")
            self._asked.put((future, functools.partial(call, *args, **kwargs)))
            if len(self.threads) < self._count:
                name = f"{self._name}_{len(self.threads)}"
                given = dict(name=name, args=(self._asked,), daemon=True)
                self.threads.append(threading.Thread(target=_work, **given))
                self.threads[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False):
        with self._lock:
            with contextlib.suppress(queue.Empty):
                while cancel_futures and self._end.alive:
                    self._asked.get_nowait()[0].cancel()
            self._end()
        for thread in self.threads if wait else ():
            thread.join()


def _work(asked: queue.SimpleQueue):
    while job := asked.get():
        future, call = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        del job, future, call  # Else they stay in memory until the next one comes.
    asked.put(None)  # For the next thread.


def cores() -> list[int]:
    """The numbers of those this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not everywhere.
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def workers(config) -> int:
    """Threads of a data set, `config.data.workers` or one a core.

    That and `prefetch` are refused where they are too few.
    """
    for key, least in (("workers", 1), ("prefetch", 0)):
        if config.data[key] is not None and config.data[key] < least:
            raise ValueError(
                f"config.data.{key}={config.data[key]} must be at least {least}."
            )
    return config.data.workers or len(cores())


def pool(config) -> Pool:
    """As many threads as `workers` says, ended by the `closing` that it is made in."""
    return Pool(workers(config), "input")


@contextlib.contextmanager
def closing():
    """Ends the pools that were made in it: a process that trains twice keeps none.

    Data sets do not know when they are used last, for evaluators make and keep theirs.
    A thread that hangs is left after a moment.
    """
    _made.append(weakref.WeakSet())
    try:
        yield
    finally:
        made = list(_made.pop())
        for each in made:
            each.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + MOMENT
        for thread in [thread for each in made for thread in each.threads]:
            thread.join(max(0.0, until - time.monotonic()))
