# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The processes that read and decode, as many as the host has cores for it.

Threads of one process hold the interpreter's lock for some 140 µs a picture (py-spy,
200 Hz), which ends near 7,000 images/s whatever the cores. Processes have a lock each:
the one that trains sends them rows and places, and what they decode they write into
memory that both see. They know nothing of the script that runs (no `__main__` is
imported again), leave Ctrl-C to it, and end when it does, however it ends.
"""

import contextlib
import functools
import io
import itertools
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from multiprocessing import connection, reduction
from typing import Any

from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data.processes import shared_batches, threads

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from g2sd_jax.data.processes import worker; worker.serve(int(sys.argv[1]))"
)


class Task:
    """An `Examples`, pickled once for all processes."""

    _numbers = itertools.count()

    def __init__(self, examples: Any):
        self.number, self._examples = next(self._numbers), examples

    @functools.cached_property
    def payload(self) -> bytes:
        """The pickled examples."""
        file = io.BytesIO()
        Pickler(file, pickle.HIGHEST_PROTOCOL).dump(self._examples)
        return file.getvalue()


class Pickler(pickle.Pickler):
    """Pickles recipes too, though not their references to their own keys."""

    def reducer_override(self, value: Any) -> Any:
        """Takes a recipe as its values."""
        if isinstance(value, ConfigDict):
            return ConfigDict, (value.copy_and_resolve_references().to_dict(),)
        return NotImplemented


class Worker:
    """One process, asked by one thread at a time."""

    def __init__(self):
        here, there = socket.socketpair()
        with there:
            path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, str(there.fileno()), path],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the process that trains.
            )
        self._connection = connection.Connection(here.detach())
        self._sent = set()  # Tasks and blocks that it has.
        self.seconds = 0.0  # Of processor time, up to its last answer.

    def fill(
        self, task: Task, shared: shared_batches.Shared, job: Any
    ) -> list[tuple[int, str]]:
        """Has it fill rows; returns those that stay empty, and why.

        Raises:
            errors.Hung: the process is gone.
            Exception: whatever it raised.
        """
        try:
            self._introduce(task, shared.block)
            self._send("fill", task.number, shared.block.number, *job)
            answer, value, self.seconds = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise errors.Hung(self._obituary()) from error
        if answer == "raised":
            raise value
        return value

    def _introduce(self, task: Task, block: shared_batches.Block) -> None:
        """Sends the task, and the memory of the batch, unless it has them."""
        if task not in self._sent:
            self._send("task", task.number, task.payload)
            self._sent.add(task)
        if block not in self._sent:
            self._send("block", block.number, block.size, block.fields)
            reduction.send_handle(self._connection, block.descriptor, self.pid)
            self._sent.add(block)

    def _send(self, *message: Any) -> None:
        # `Connection.send` takes a slower pickler, and is called for every chunk.
        self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _obituary(self) -> str:
        """What a user is to know of a process that is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=threads.MOMENT)
        code = self._process.returncode
        how = f"with exit status {code}"
        if code is not None and code < 0:
            how = f"by {signal.Signals(-code).name}"
        return (
            f"a process that reads pictures was ended {how}; if it said why, that "
            "stands above. Where memory is short, set fewer (config.data.workers). The "
            "same command goes on from the last checkpoint."
        )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def kill(self) -> None:
        """Ends it at once: it holds nothing that would be lost."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=threads.MOMENT)


class Pool(threads.Pool):
    """Threads that have a process each, which starts with the thread's first job.

    Args:
        count: the most of them.
    """

    def __init__(self, count: int):
        super().__init__(count, "input")
        self._own, self.workers = threading.local(), []
        self._kill = weakref.finalize(self, kill_all, self.workers)

    def fill(
        self, task: Task, shared: shared_batches.Shared, jobs: Sequence[Any]
    ) -> list[tuple[int, str]]:
        """Has jobs done; returns the rows of all that stay empty, and why."""
        futures = [self.submit(self._fill, task, shared, job) for job in jobs]
        return [failure for future in futures for failure in future.result()]

    def _fill(self, task, shared, job):
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker()
            self.workers.append(self._own.worker)
        return self._own.worker.fill(task, shared, job)

    def seconds(self) -> float:
        """Processor time of all processes, up to their last answers."""
        return sum(worker.seconds for worker in self.workers)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads and the processes, hung ones too."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        self._kill()
        super().shutdown(wait=wait, cancel_futures=cancel_futures)


def kill_all(workers: list[Worker]) -> None:
    """Ends processes."""
    for worker in workers:
        worker.kill()


def pool(config: ConfigDict) -> Pool:
    """A pool of `config.data.workers` processes, or one a core.

    All data sets of one run share it, and its end is that of the `threads.closing` that
    it is made in.
    """
    count = threads.workers(config)
    for made in threads.made_here():
        if isinstance(made, Pool) and made.count == count:
            return made
    return Pool(count)
