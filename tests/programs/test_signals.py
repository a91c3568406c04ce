# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C at any moment of a run: 75 or 130, one line, and no traceback.

Each start is a process as a user begins it, imports and all.
"""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

import runs
from g2sd_jax import checkpoint, metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = [
    "--config=pretrain:smoke",
    *(f"--config.model.{k}={v}" for k, v in (runs.SMALL | runs.DECODER).items()),
    "--config.total_steps=100000",
    "--config.checkpoint.every=50",
    "--config.log_every=1",
    "--config.progress=False",
    "--config.first_batch_images=0",
    "--config.monitor.loss=False",
    "--config.monitor.neighbours=0",
]
LINES = re.compile(
    r"(?P<start>stopped as asked; the same command starts again)"
    r"|(?P<ctrl_c>interrupted; the same command starts again)"
    r"|(?P<saved>stopped as asked: step \d+ of 100000 is saved; .*)"
    r"|(?P<nothing>stopped as asked: no step is made; .*)"
)


class Start:
    """One start of a run on `workdir`, that will be asked to end."""

    def __init__(self, workdir: pathlib.Path):
        command = [sys.executable, "-m", "g2sd_jax.cli", "train", *RECIPE]
        env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="")
        self.workdir = workdir
        self.process = subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def listens(self) -> bool:
        """Whether Python has come as far as to take signals."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def logged(self) -> int:
        path = self.workdir / metrics.FILE
        rows = metrics.read_lines(path) if path.exists() else []
        return rows[-1]["step"] if rows else 0

    def until(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end, "nothing happens"
            time.sleep(0.01)

    def end(self, number: signal.Signals) -> str:
        """Sends a signal; returns what the last line says, and checks the status."""
        self.process.send_signal(number)
        try:
            output, _ = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        assert "Traceback" not in output, output
        lines = [match for match in map(LINES.fullmatch, output.splitlines()) if match]
        assert len(lines) == 1, output
        expected = 130 if lines[0].lastgroup == "ctrl_c" else 75
        assert self.process.returncode == expected, output
        assert lines[0].lastgroup != "start" or number == signal.SIGTERM
        return lines[0].lastgroup


def check(workdir: pathlib.Path, starts: int, longest: float, seed: int) -> list[str]:
    """Ends many starts at random moments, up to `longest` seconds after each began."""
    draw, ends = random.Random(seed), []
    for index in range(starts):
        start = Start(workdir)
        start.until(start.listens)
        time.sleep(draw.uniform(0.0, longest))
        ends.append(start.end((signal.SIGTERM, signal.SIGINT)[index % 2]))
    return ends


def test_a_start_is_ended_while_it_imports(tmp_path):
    assert check(tmp_path / "run", starts=2, longest=1.0, seed=0) == ["start", "ctrl_c"]
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_the_step_it_comes_at_and_the_run_goes_on(tmp_path):
    start = Start(tmp_path)
    start.until(lambda: start.logged() >= 3)
    assert start.end(signal.SIGINT) == "saved"
    saved = checkpoint.read_run(str(tmp_path), "key").step
    assert saved >= 3 and saved % 50
    # Again, as soon as the lock says that it has come so far.
    start = Start(tmp_path)
    running = tmp_path / "RUNNING"
    start.until(lambda: running.exists() and '"pid"' in running.read_text())
    assert start.end(signal.SIGTERM) == "start"
    assert not running.exists()
    assert checkpoint.read_run(str(tmp_path), "key").step == saved


@pytest.mark.slow
def test_starts_are_ended_at_many_moments(tmp_path):
    start = Start(tmp_path)
    start.until(start.listens)
    began = time.monotonic()
    start.until(lambda: start.logged() >= 2)
    until_it_trains = time.monotonic() - began
    assert start.end(signal.SIGTERM) == "saved"
    # On a busy machine perhaps none of them comes as far as that one.
    ends = check(tmp_path, starts=9, longest=1.5 * until_it_trains, seed=1)
    assert {"start", "ctrl_c"} <= set(ends)
    assert (
        checkpoint.read_run(str(tmp_path), "key").step
        == metrics.read_lines(tmp_path / metrics.FILE)[-1]["step"]
    )


@pytest.mark.slow
def test_of_two_runs_that_start_at_once_one_trains(tmp_path):
    pair = [Start(tmp_path) for _ in range(2)]
    end = time.monotonic() + 120
    while not (loser := next((p for p in pair if p.process.poll() is not None), None)):
        assert time.monotonic() < end
        time.sleep(0.05)
    output, _ = loser.process.communicate(timeout=60)
    winner = pair[1 - pair.index(loser)]
    assert loser.process.returncode == 2 and output.count("\n") == 1
    assert f"in use by process {winner.process.pid} on " in output
    winner.until(lambda: winner.logged() >= 3)
    assert winner.end(signal.SIGINT) == "saved"
    steps = [row["step"] for row in metrics.read_lines(tmp_path / metrics.FILE)]
    assert steps == list(range(1, len(steps) + 1))
