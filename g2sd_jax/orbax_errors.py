# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What Orbax and its storage say when something fails: once, and in one line."""

import logging
import re
import sys
import threading


def silence() -> None:
    """Leaves out what they print themselves, from now on, in this process.

    The same error reaches the run, which tells it in one line (`--debug` shows all).
    """
    if getattr(threading.excepthook, "without_orbax", False):
        return
    in_thread, unraised = threading.excepthook, sys.unraisablehook

    def hook(failed):
        if not type(failed.thread).__module__.startswith("orbax."):
            in_thread(failed)

    def late(failed):  # Reads that were under way when the first of them failed.
        code = getattr(failed.object, "cr_code", None)
        theirs = code is not None and "orbax" in code.co_filename
        if failed.object is None:
            theirs = "Event loop is closed" in str(failed.exc_value)
        if not theirs:
            unraised(failed)

    hook.without_orbax = True
    threading.excepthook, sys.unraisablehook = hook, late
    orbax = lambda record: "orbax" in record.pathname + record.getMessage()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not orbax(record))


def in_a_line(error: BaseException) -> str:
    """The part of a library's error that a person can act on."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        )
    text = str(error).strip() or type(error).__name__
    of_the_system = re.search(r"OS error \d+: (?:E[A-Z]+ )?([^\]]+)", text)
    if of_the_system:  # At the very end of what the storage has to say.
        return of_the_system[1]
    return text.splitlines()[0][:300]
