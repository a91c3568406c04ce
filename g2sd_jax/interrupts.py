# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C: a process leaves at once, with one line, or saves first.

Python's own handlers run when the library that is being called returns, which takes
minutes where it compiles, and what they raise may be swallowed there. So a thread waits
for the signals, and ends the process itself.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from g2sd_jax import errors

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds. A second Ctrl-C that comes sooner is the first, passed on by a launcher.
REPEATED = 0.5
PATIENCE = 5.0  # Seconds that `leaving` and a full pipe may take.

leaving: list[Callable[[], None]] = []  # Called by a process that leaves at once.


class _Signals:
    """What came, and whether the run looks after it."""

    watching = False
    deferred = False
    first: float | None = None  # When the first of the deferred signals came.


_signals = _Signals()


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Within, a signal ends the process at once, unless `defer` was called."""
    _signals.deferred, _signals.first = False, None
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set a handler.
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = {number: signal.signal(number, _noted) for number in SIGNALS}
    for number in SIGNALS:  # Else a library's system call fails, and is told instead.
        signal.siginterrupt(number, False)
    descriptor = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(receiver,), daemon=True)
    thread.start()
    _signals.watching = True
    try:
        yield
    finally:
        _signals.watching = False
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(sender)
        thread.join()
        os.close(receiver)


def _noted(*_) -> None:
    """Does nothing: with a handler of Python the thread gets the signal's number."""


def _watch(receiver: int) -> None:
    while received := os.read(receiver, 1):  # Empty once the sender is closed.
        if received[0] in SIGNALS:
            _receive(received[0])


def _receive(number: int) -> None:
    if not _signals.deferred and number == signal.SIGTERM:
        leave(errors.EXIT_AGAIN, "stopped as asked; the same command starts again")
    if not _signals.deferred:
        leave(errors.EXIT_INTERRUPTED, "interrupted; the same command starts again")
    now = time.monotonic()
    if _signals.first is None:
        _signals.first = now
        if number == signal.SIGINT and sys.stderr.isatty():
            print("saving; Ctrl-C again leaves at once", file=sys.stderr, flush=True)
    elif number == signal.SIGINT and now - _signals.first > REPEATED:
        line = "interrupted again; the same command goes on from the last checkpoint"
        leave(errors.EXIT_INTERRUPTED, line)


def watching() -> bool:
    """Whether the process is inside of `answered`."""
    return _signals.watching


def defer() -> None:
    """Lets signals only be noted from now on; the caller looks after them.

    A second Ctrl-C still ends the process at once.
    """
    _signals.deferred = True


def stop_deferring() -> None:
    """Lets signals end the process at once again.

    Raises:
        errors.Preempted: one came after the caller of `defer` had ceased to look.
    """
    _signals.deferred = False
    if _signals.first is not None:
        raise errors.Preempted("stopped as asked; the same command goes on from there")


def leave(status: int, line: str) -> None:
    """Ends the process with a last line, whatever its other threads are doing."""

    def tidy():
        for each in leaving:
            with contextlib.suppress(Exception):
                each()
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=tidy, daemon=True)  # It may hang as well.
    thread.start()
    thread.join(PATIENCE)
    os._exit(status)
