# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A process that fills rows of batches, until nobody asks it any more."""

import contextlib
import mmap
import os
import pickle
import signal
import time
import traceback
from multiprocessing import connection, reduction
from typing import Any

import numpy as np

from g2sd_jax.data import filling
from g2sd_jax.data.processes import shared_batches

IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def serve(descriptor: int) -> None:
    """Answers a `workers.Worker` until that closes the connection, or is gone.

    A cluster that wants a run to end tells all of its processes; this one is needed
    until the run has saved, and ends with it.

    Args:
        descriptor: of the connection.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with (
        connection.Connection(descriptor) as sender,
        contextlib.suppress(EOFError, ConnectionError),
    ):
        Server(sender).run()


class Server:
    """Keeps the tasks and the batches that it was sent.

    Args:
        sender: the connection.
    """

    def __init__(self, sender: connection.Connection):
        self._sender, self._tasks, self._blocks = sender, {}, {}

    def run(self) -> None:
        """Handles messages; raises EOFError at the end of the connection."""
        handle = {"task": self._task, "block": self._block, "fill": self._fill}
        while True:
            kind, *arguments = pickle.loads(self._sender.recv_bytes())
            handle[kind](*arguments)

    def _task(self, number: int, payload: bytes) -> None:
        self._tasks[number] = payload

    def _block(self, number: int, size: int, fields: dict) -> None:
        descriptor = reduction.recv_handle(self._sender)
        memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        os.close(descriptor)
        self._blocks[number] = shared_batches.arrays_in(memory, fields)

    def _fill(self, task: int, block: int, *job: Any) -> None:
        try:
            failed = filling.fill_rows(
                self._examples(task), self._blocks[block], filling.Job(*job)
            )
            answer = "done", failed
        except Exception as error:  # It is raised where the batch is asked for.
            answer = "raised", picklable(error)
        self._sender.send_bytes(pickle.dumps((*answer, time.process_time())))

    def _examples(self, number: int) -> Any:
        """The task; unpickled only now, so that an error has somebody to tell."""
        if isinstance(self._tasks[number], bytes):
            self._tasks[number] = pickle.loads(self._tasks[number])
        return self._tasks[number]


def picklable(error: Exception) -> Exception:
    """An error with its traceback as a note, or its text where it cannot be pickled."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
