# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: files, TensorBoard, W&B, a progress bar, and profiler traces."""

import contextlib
import functools
import importlib
import json
import math
import os
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import TextIO

import jax
import tqdm
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import json_files, parallel, workdir

FILE = "metrics.jsonl"
VERDICT = ("input_bound", "input_cores")  # Of `clock.Clock`, written as words.


class Writer:
    """Writes named scalars to every sink the config asks for, on the main process.

    Args:
        path: folder for `metrics.jsonl`, `tensorboard/` and W&B's own files.
        config: recipe; its keys `progress` and `wandb` are read.
        start_step: number of steps already done; rows logged after them are dropped.
        total_steps: number of steps of the full run.
        main: whether this process writes; the others stay silent.
    """

    def __init__(
        self,
        path: str,
        config: ConfigDict,
        start_step: int,
        total_steps: int,
        main: bool,
    ):
        self._sinks = []
        self._display = None
        if not main:
            return
        folder = epath.Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if config.wandb:  # First, for it may refuse, and then nothing was touched.
            self._sinks.append(Wandb(folder, config))
        self._sinks.append(Lines(folder / FILE, start_step))
        events = _tensorboard(folder / "tensorboard", start_step)
        if events:
            self._sinks.append(events)
        if config.progress:
            self._display = Display(start_step, total_steps)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` under `step`, the number of steps done."""
        for sink in self._sinks:
            sink.write(step, scalars)
        if self._display:
            self._display.write(step, scalars)

    def sync(self) -> None:
        """Makes all rows durable, before a checkpoint that counts on them."""
        for sink in self._sinks:
            sink.sync()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        if self._display:
            self._display.close()


class Lines:
    """A file of JSON lines, complete after every write.

    Objects in a bucket cannot be appended to: there the file is written anew with every
    checkpoint, and a restart drops later rows anyway.
    """

    def __init__(self, path: epath.Path, start_step: int):
        self._path, self._file = path, None
        rows = read_lines(path) if path.exists() else []
        last = start_step or -1  # A run from step 0 drops every row.
        lines = [json.dumps(row) + "\n" for row in rows if row["step"] <= last]
        self._text = "".join(lines)
        with self._one_line_errors():
            workdir.write_text(path, self._text)
            if not workdir.remote(path):
                self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        # JSON has no NaN: other readers than Python's refuse the whole line.
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        with self._one_line_errors():
            if self._file is None:
                self._text += line
                return
            self._file.write(line)
            self._file.flush()

    def sync(self) -> None:
        if self._file is None:
            workdir.write_text(self._path, self._text)

    def close(self) -> None:
        self.sync()
        if self._file is not None:
            with self._one_line_errors():  # After a failed flush this fails again.
                self._file.close()

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._path} can not be written: {error.strerror or error}. The same "
                "command goes on from the last checkpoint once it can."
            ) from error


def read_lines(path: str | os.PathLike) -> list[dict]:
    """Reads the rows of a `metrics.jsonl`; a damaged line is named and left out.

    A last line without its end is what a killed run leaves: it is left out in silence.
    """
    rows = []
    lines = epath.Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number < len(lines):
            _print_damaged(str(path), number)
    return rows


def _row(line: bytes) -> dict | None:
    """A line as a row, {"step": 7, "loss": 0.5}; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    numeric = (json_files.is_number(v) or v is None for v in row.values())
    return row if all(numeric) else None


@functools.cache  # A report opens the same run many times.
def _print_damaged(path: str, number: int) -> None:
    parallel.print_once(f"{path}, line {number}: damaged, and left out")


def last_losses(path: str) -> dict[str, float]:
    """The losses of the last logged step of a run, whichever attempt of it made it."""
    file = epath.Path(path) / FILE
    rows = read_lines(file) if file.exists() else []
    last = next((row for row in reversed(rows) if "loss" in row), {})
    return {key: value for key, value in last.items() if key.startswith("loss")}


def last_scores(path: str, number: int) -> dict[str, float]:
    """The evaluation of step `number` of a run; empty if none was logged."""
    file = epath.Path(path) / FILE
    rows = read_lines(file) if file.exists() else []
    scores = [row for row in rows if row["step"] == number and "loss" not in row]
    return {k: v for row in scores[-1:] for k, v in row.items() if k != "step"}


class Wandb:
    """A Weights & Biases run; its id stays in the workdir, so a resume continues it."""

    def __init__(self, folder: epath.Path, config: ConfigDict):
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError(
                f"config.wandb={config.wandb!r} needs the package wandb, which is not "
                f"installed; pip install 'g2sd_jax[wandb]', or leave it empty."
            ) from error
        self._run = wandb.init(
            project=config.wandb,
            name=folder.resolve().name,
            dir=str(folder),
            config=config.to_dict(),
            resume="auto",
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def sync(self) -> None:
        """Does nothing: W&B uploads in the background."""

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """TensorBoard event files, written by tensorboardX."""

    def __init__(self, module: types.ModuleType, folder: epath.Path, start_step: int):
        # Purging hides what an interrupted run logged beyond its last checkpoint.
        self._events = module.SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            if math.isfinite(value):  # Of others it warns, and no curve shows them.
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def sync(self) -> None:
        """Does nothing: every write is flushed."""

    def close(self) -> None:
        self._events.close()


def _tensorboard(folder: epath.Path, start_step: int) -> TensorBoard | None:
    try:
        module = importlib.import_module("tensorboardX")
        if workdir.remote(folder):  # It writes there by this package.
            importlib.import_module("google.cloud.storage")
    except ImportError as error:
        print(f"{error.name} is not installed: no TensorBoard files for this run")
        return None
    return TensorBoard(module, folder, start_step)


class Display:
    """A progress bar on a terminal, one plain line per write anywhere else."""

    def __init__(self, start_step: int, total_steps: int, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._start, self._total = start_step, total_steps
        self._began = time.perf_counter()
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm.tqdm(
                initial=start_step,
                total=total_steps,
                file=self._stream,
                unit="step",
                dynamic_ncols=True,
            )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        shown = {name: v for name, v in scalars.items() if name not in VERDICT}
        text = "  ".join(f"{name} {_brief(v)}" for name, v in shown.items())
        text += _verdict(scalars)
        if self._bar is None:
            line = f"step {step}/{self._total}  {text}  eta {self._eta(step)}"
            print(line, file=self._stream, flush=True)
        elif "loss" in scalars:
            rate = scalars.get("images_per_sec", math.nan)
            self._bar.set_postfix_str(
                f"loss {_brief(scalars['loss'])}, {_brief(rate)} images/s"
                + _verdict(scalars),
                refresh=False,
            )
            self._bar.update(step - self._bar.n)
        else:  # An evaluation: worth a line that stays.
            self._bar.write(f"step {step}  {text}", file=self._stream)

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "?"
        seconds = (time.perf_counter() - self._began) / done * (self._total - step)
        return tqdm.tqdm.format_interval(seconds)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _verdict(scalars: Mapping[str, float]) -> str:
    """Names the slower side, input or compute, if `clock.Clock` has measured both."""
    if "input_bound" not in scalars:
        return ""
    if not scalars["input_bound"]:
        return "  compute-bound"
    cores = scalars.get("input_cores")
    return (
        f"  input-bound ({cores:.0f} cores a host would do)"
        if cores
        else "  input-bound"
    )


def _brief(value: float) -> str:
    # Counts are printed in full; beyond 2**53 a float counts no longer exactly.
    is_count = abs(value) < 2**53 and value == int(value)
    return f"{value:.0f}" if is_count else f"{value:.4g}"


class Late:
    """Fetches the device metrics of each step one step late, so the host never waits.

    Reading a number makes the host wait for the step it comes from; one step later that
    step is done, or nearly so, and the device already has the next one queued.
    """

    def __init__(self):
        self._pending = None

    def swap(
        self, step: int, metrics: Mapping[str, jax.Array]
    ) -> tuple[int, dict[str, float]] | None:
        """Takes the metrics of `step`; returns those of the step before, as `last`."""
        previous, self._pending = self.last(), (step, metrics)
        return previous

    def last(self) -> tuple[int, dict[str, float]] | None:
        """Waits for the pending metrics and returns (step, floats), or None."""
        if self._pending is None:
            return None
        (step, metrics), self._pending = self._pending, None
        return step, {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}


class Profile:
    """Traces the steps `config.profile=(start, stop)` into `workdir/profile`."""

    def __init__(self, path: str, config: ConfigDict, main: bool):
        self._steps = tuple(config.profile) if main else ()
        self._folder = epath.Path(path) / "profile"
        self._running = False

    def before(self, step: int) -> None:
        """Starts or stops the trace; called before `step`, counted from 1."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step == self._steps[1]:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
