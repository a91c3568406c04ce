# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C, whatever a process is doing: one line, and the documented status.

Each program is a process of its own, for the signals would end the tests' as well.
"""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from g2sd_jax import errors, interrupts

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN = "from g2sd_jax import interrupts\nwith interrupts.answered():\n"
READY = "    print('ready', flush=True)\n"
# A library that computes for a minute, and one that swallows what handlers raise.
COMPUTES = (
    READY + "    import hashlib\n    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**8)\n"
)
SWALLOWS = (
    READY + "    import time\n    while True:\n"
    "        try: time.sleep(0.01)\n        except BaseException: pass\n"
)
DEFERS = "    interrupts.defer()\n" + SWALLOWS


@contextlib.contextmanager
def started(body):
    program = [sys.executable, "-c", BEGIN + body]
    pipe = subprocess.PIPE
    process = subprocess.Popen(program, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


ENDS = {
    signal.SIGTERM: (75, "stopped as asked; the same command starts again\n"),
    signal.SIGINT: (130, "interrupted; the same command starts again\n"),
}


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("body", [COMPUTES, SWALLOWS])
def test_a_process_leaves_at_once_with_one_line(body, number):
    with started(body) as process:
        process.send_signal(number)
        _, error = process.communicate(timeout=10)
    assert (process.returncode, error) == ENDS[number]


def test_what_is_to_be_saved_is_saved_and_a_second_ctrl_c_leaves_at_once():
    with started(DEFERS) as process:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            process.send_signal(number)  # As a launcher passes one on.
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2 * interrupts.REPEATED)
        process.send_signal(signal.SIGTERM)  # Schedulers may send several.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert error == (
        "interrupted again; the same command goes on from the last checkpoint\n"
    )


def test_what_was_asked_at_the_end_of_a_run_ends_the_next():
    body = "    interrupts.defer()\n" + READY
    body += (
        "    import sys; sys.stdin.readline()\n"
        "    try: interrupts.stop_deferring()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    program = [sys.executable, "-c", BEGIN + body]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        program, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    out, error = process.communicate("\n", timeout=10)
    assert (process.returncode, error) == (0, "")
    assert out.startswith("Preempted stopped as asked")


def test_a_process_that_leaves_tidies_up_but_does_not_wait_for_it():
    body = (
        "    import time\n"
        "    interrupts.PATIENCE = 0.5\n"
        "    interrupts.leaving += [lambda: print('tidied', flush=True)]\n"
        "    interrupts.leaving += [lambda: time.sleep(60)]\n"
    )
    with started(body + COMPUTES) as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (75, "tidied\n")


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with pytest.raises(errors.Preempted), interrupts.answered():
        assert interrupts.watching()
        assert signal.getsignal(signal.SIGTERM) not in before
        raise errors.Preempted
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert not interrupts.watching()
