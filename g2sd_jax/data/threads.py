# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The threads that read and decode: how many there are, and that they end."""

import contextlib
import os
from concurrent import futures

_made = []  # Of every `closing` that is entered: the pools made since.


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


def pool(config) -> futures.ThreadPoolExecutor:
    """As many threads as `workers` says, ended by the `closing` that it is made in."""
    made = futures.ThreadPoolExecutor(workers(config), thread_name_prefix="input")
    if _made:
        _made[-1].append(made)
    return made


@contextlib.contextmanager
def closing():
    """Ends the pools that were made in it: a process that trains twice keeps none.

    Data sets do not know when they are used last, for evaluators make and keep theirs.
    A thread that hangs is not waited for.
    """
    _made.append([])
    try:
        yield
    finally:
        for each in _made.pop():
            each.shutdown(wait=False, cancel_futures=True)
