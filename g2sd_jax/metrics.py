# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it runs: files of metrics, a progress bar, where time goes."""

import contextlib
import importlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import tqdm
from etils import epath

from g2sd_jax import workdir

FILE = "metrics.jsonl"


def say(line: str) -> None:
    """Tells the user something once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


class Writer:
    """Writes named scalars to every place the config asks for, on the main process.

    Args:
        path: folder for `metrics.jsonl`, `tensorboard/` and W&B's own files.
        config: the run's; read are `batch`, `progress` and `wandb`.
        start_step: steps already done; what was logged after them is dropped.
        total_steps: steps of the whole run.
        main: whether this is the process that writes; the others stay silent.
    """

    def __init__(self, path, config, start_step: int, total_steps: int, main: bool):
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

    def write(self, step: int, scalars: Mapping[str, float]):
        """Logs scalars as those of `step`, the number of steps done."""
        for sink in self._sinks:
            sink.write(step, scalars)
        if self._display:
            self._display.write(step, scalars)

    def sync(self):
        """Makes sure that what was written is where a restart finds it."""
        for sink in self._sinks:
            sink.sync()

    def close(self):
        for sink in self._sinks:
            sink.close()
        if self._display:
            self._display.close()


class Lines:
    """One JSON object a line, whole after every write.

    An object of a bucket can not grow: there the file is written anew with every
    checkpoint, which is all that a restart keeps of it anyway.
    """

    def __init__(self, path: epath.Path, start_step: int):
        self._path, self._file = path, None
        rows = read_lines(path) if path.exists() else []
        last = start_step or -1  # A start from nothing keeps nothing.
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= last]
        self._text = "".join(kept)
        with self._told():
            workdir.write_text(path, self._text)
            if not workdir.remote(path):
                self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, scalars: Mapping[str, float]):
        # JSON has no NaN: other readers than Python's refuse the whole line.
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        with self._told():
            if self._file is None:
                self._text += line
                return
            self._file.write(line)
            self._file.flush()

    def sync(self):
        if self._file is None:
            workdir.write_text(self._path, self._text)

    def close(self):
        self.sync()
        if self._file is not None:
            with self._told():  # What a failed flush left behind fails once more.
                self._file.close()

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._path} can not be written: {error.strerror or error}. The same "
                "command goes on from the last checkpoint once it can."
            ) from error


def read_lines(path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a line cut short by a killed run ends them."""
    rows = []
    for line in epath.Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Wandb:
    """Weights & Biases; its run id stays in the workdir, so a resume continues it."""

    def __init__(self, folder: pathlib.Path, config):
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

    def write(self, step: int, scalars: Mapping[str, float]):
        self._run.log(dict(scalars), step=step)

    def sync(self):
        """It sends what it gets by itself."""

    def close(self):
        self._run.finish()


class TensorBoard:
    def __init__(self, module, folder: pathlib.Path, start_step: int):
        # Purging hides what an interrupted run logged beyond its last checkpoint.
        self._events = module.SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]):
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def sync(self):
        """Every write was flushed."""

    def close(self):
        self._events.close()


def _tensorboard(folder: pathlib.Path, start_step: int) -> TensorBoard | None:
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

    def __init__(self, start_step: int, total_steps: int, stream=None):
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

    def write(self, step: int, scalars: Mapping[str, float]):
        shown = {name: v for name, v in scalars.items() if name != "input_bound"}
        told = "  ".join(f"{name} {_brief(v)}" for name, v in shown.items())
        told += _verdict(scalars)
        if self._bar is None:
            line = f"step {step}/{self._total}  {told}  eta {self._eta(step)}"
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
            self._bar.write(f"step {step}  {told}", file=self._stream)

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "?"
        seconds = (time.perf_counter() - self._began) / done * (self._total - step)
        return tqdm.tqdm.format_interval(seconds)

    def close(self):
        if self._bar is not None:
            self._bar.close()


def _verdict(scalars: Mapping[str, float]) -> str:
    """In a word which side `clock.Clock` found to be the slower one."""
    if "input_bound" not in scalars:
        return ""
    return "  input-bound" if scalars["input_bound"] else "  compute-bound"


def _brief(value: float) -> str:
    # A count is told whole; what is larger than a float counts exactly is none.
    whole = abs(value) < 2**53 and value == int(value)
    return f"{value:.0f}" if whole else f"{value:.4g}"


class Late:
    """Keeps each step's device metrics until the next, so no step is waited for.

    Reading a number makes the host wait for the step it comes from; one step later that
    step is done, or nearly so, and the device already has the next one queued.
    """

    def __init__(self):
        self._held = None

    def swap(self, step: int, metrics: Mapping[str, jax.Array]):
        """Takes a step's metrics; returns `(step, floats)` of the last one, or None."""
        before, self._held = self.last(), (step, metrics)
        return before

    def last(self) -> tuple[int, dict[str, float]] | None:
        """Hands back what is still held, after waiting for it."""
        if self._held is None:
            return None
        (step, metrics), self._held = self._held, None
        return step, {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}


class Profile:
    """Traces the steps `config.profile=(start, stop)` into `workdir/profile`."""

    def __init__(self, path, config, main: bool):
        if config.profile and not (
            len(config.profile) == 2 and 0 < config.profile[0] < config.profile[1]
        ):
            raise ValueError(
                f"config.profile={tuple(config.profile)}: give the first step and the "
                "one after the last, such as (10, 13); () is off."
            )
        self._steps = tuple(config.profile) if main else ()
        self._folder = epath.Path(path) / "profile"
        self._running = False

    def before(self, step: int):
        """Called before `step` is dispatched, counted from 1."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step == self._steps[1]:
            self.close()

    def close(self):
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
