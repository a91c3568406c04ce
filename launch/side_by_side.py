# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the steps of a chain side by side on one GPU, or one CPU, of this machine.

    python launch/side_by_side.py --config=chains/cifar10_controls:path=… \\
        --workdir=DIR --workers=6 --minutes=7

One small network leaves most of a GPU idle, so several processes share it, each
training one step after the other. A step starts when the steps that its config names
are done; of several, that which stands first in the chain. After `--minutes` all are
asked to save and to end. The same command goes on from there, and so does `g2sd chain`,
which then writes the report. DIR/rows.jsonl has a line for every step that is done,
DIR/table.md their means and deviations over the seeds so far.
"""

import argparse
import collections
import contextlib
import json
import math
import multiprocessing
import os
import pathlib
import signal
import sys
import time
import traceback
import types
from collections.abc import Sequence
from multiprocessing import connection
from typing import NamedTuple, NoReturn

from ml_collections import ConfigDict

from g2sd_jax import (
    command,
    errors,
    finished,
    interrupts,
    json_files,
    lock,
    loop,
    recipes,
    workdir,
)
from g2sd_jax.pages import chain_report, results_table
from g2sd_jax.tools import chain

ROWS, TABLE = "rows.jsonl", "table.md"
GRACE = 20.0  # Seconds to save in, after which a worker is killed.


class Worker(NamedTuple):
    """A process that trains steps, and this end of its pipe."""

    process: multiprocessing.Process
    pipe: connection.Connection


class Task(NamedTuple):
    """A step that is being trained."""

    step: chain.Step
    worker: Worker
    began: float  # Of `time.monotonic`.


def main(argv: Sequence[str]) -> int:
    """Runs the chain; returns an exit status of `errors`, or 1 where a step failed."""
    return command.guarded(lambda: _run(argv), debug=False)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the chain; one in it is continued")
    add("--workers", type=int, default=4, help="processes side by side")
    add("--minutes", type=float, default=math.inf, help="time after which to stop")
    began = time.monotonic()
    args = recipes.parse(parser, argv)
    if args.workers < 1:
        raise ValueError(f"--workers={args.workers} must be at least 1.")
    # Or the first process would take most of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    root = os.path.abspath(args.workdir)
    steps = by_priority(args.config, chain.plan(args.config, root))
    workdir.check(chain.identity(args.config), root)
    claim = lock.Lock(root)
    schedule = Schedule(steps, root)
    interrupts.defer()  # Else this process would leave its workers behind.
    for number in interrupts.SIGNALS:
        signal.signal(number, leave)
    workers = [start(args.config, root, number) for number in range(args.workers)]
    try:  # While they import what they need.
        workdir.claim(chain.identity(args.config), root)
        stored = workdir.to_json_dict(args.config)
        workdir.write_json(os.path.join(root, finished.CHAIN), stored)
        schedule.run(workers, began + 60 * args.minutes)
    finally:
        stop(workers)
        claim.release()
    print(schedule.summary(), flush=True)
    if schedule.failed:
        return 1
    return errors.EXIT_AGAIN if schedule.waiting else errors.EXIT_DONE


def by_priority(config: ConfigDict, steps: Sequence[chain.Step]) -> list[chain.Step]:
    """Orders the steps as the chain lists them, the seeds of each one together."""
    place = {name: number for number, (name, *_) in enumerate(config.steps)}
    return sorted(steps, key=lambda step: place[os.path.basename(step.workdir)])


class Schedule:
    """Which steps are left, and what became of the others.

    Args:
        steps: all of them, the most important first.
        root: folder of the chain.
    """

    def __init__(self, steps: Sequence[chain.Step], root: str):
        self._root = pathlib.Path(root)
        self._names = list(dict.fromkeys(os.path.basename(s.workdir) for s in steps))
        name_of = {step.workdir: step.name for step in steps}
        self._needs = {
            step.name: {
                name_of[value]
                for value in errors.flatten(step.config.to_dict()).values()
                if isinstance(value, str) and value in name_of
            }
            for step in steps
        }
        done = lambda step: os.path.exists(os.path.join(step.workdir, workdir.DONE))
        self.waiting = [step for step in steps if not done(step)]
        self.done = {step.name for step in steps if done(step)}
        self.failed = set()

    def run(self, workers: Sequence[Worker], until: float) -> None:
        """Hands steps to idle workers until none is left, or the time `until`."""
        idle, tasks = list(workers), {}
        while time.monotonic() < until:
            while idle and (step := self.next()):
                worker = idle.pop()
                task = tasks[worker.pipe] = Task(step, worker, time.monotonic())
                with contextlib.suppress(ConnectionError):  # Noticed as its answer.
                    task.worker.pipe.send(step.name)
            if not tasks:
                return
            left = min(60.0, max(0.0, until - time.monotonic()))
            for pipe in connection.wait(list(tasks), left):
                task = tasks.pop(pipe)
                try:
                    self.record(task, pipe.recv())
                    idle.append(task.worker)
                except (EOFError, ConnectionError):
                    self.record(task, dict(error="the process ended"))
        self.waiting += [task.step for task in tasks.values()]

    def next(self) -> chain.Step | None:
        """Takes the first waiting step whose needs are done, if there is one."""
        for step in self.waiting:
            if self._needs[step.name] <= self.done:
                self.waiting.remove(step)
                return step
        return None

    def record(self, task: Task, result: dict) -> None:
        """Writes down how a step ended: its final metrics, or its error."""
        name, config = task.step.name, task.step.config
        seconds = time.monotonic() - task.began
        (self.failed if "error" in result else self.done).add(name)
        row = dict(
            step=name,
            recipe=task.step.recipe,
            seed=config.seed,
            batch=config.batch,
            examples=config.data.train_examples,
            seconds=round(seconds, 2),
            result=result,
        )
        with open(self._root / ROWS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        path = self._root / chain_report.SECONDS
        legs = json_files.read_numbers(path) if path.exists() else {}
        workdir.write_json(path, legs | {name: legs.get(name, 0.0) + seconds})
        rows = read_rows(self._root / ROWS)
        workdir.write_text(self._root / TABLE, table(rows, self._names))
        ended = result.get("error") or ", ".join(
            f"{key} {value:.4g}" for key, value in scores(result).items()
        )
        print(f"{name}: {seconds:.1f} s, {ended}", flush=True)

    def summary(self) -> str:
        """How many steps are done, failed, and left."""
        return (
            f"{len(self.done)} steps done, {len(self.failed)} failed"
            f"{': ' * bool(self.failed)}{', '.join(sorted(self.failed))}; "
            f"{len(self.waiting)} left; {self._root / ROWS}"
        )


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows written so far."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def scores(result: dict) -> dict[str, float]:
    """The scores among a run's final metrics."""
    return {
        key: value
        for key, value in result.items()
        if "/" in key and not key.startswith("loss") and not key.endswith("count")
    }


def table(rows: Sequence[dict], names: Sequence[str]) -> str:
    """Markdown: every step's scores over its seeds, in the order of `names`."""
    done = {row["step"]: row for row in rows if "error" not in row["result"]}
    by_name = collections.defaultdict(list)
    for step in sorted(done):
        by_name[step.rpartition("/")[2]].append(done[step])
    columns = sorted({key for row in done.values() for key in scores(row["result"])})
    cells = []
    for name in (name for name in names if name in by_name):
        runs = by_name[name]
        cells.append([name, ", ".join(str(run["seed"]) for run in runs)])
        cells[-1].append(str(runs[0]["result"]["step"]))
        cells[-1].append(", ".join(f"{run['seconds']:.0f}" for run in runs))
        for column in columns:
            values = [scores(run["result"]).get(column) for run in runs]
            complete = None not in values
            cells[-1].append(results_table.plus_minus(values) if complete else "")
    header = ["step", "seeds", "steps", "seconds", *columns]
    return results_table.markdown(header, cells) + "\n"


def start(config: ConfigDict, root: str, number: int) -> Worker:
    """Starts a process that trains the steps named to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    log = os.path.join(root, f"worker_{number}.log")
    process = context.Process(target=work, args=(config, root, theirs, log))
    process.start()
    theirs.close()
    return Worker(process, ours)


def work(config: ConfigDict, root: str, pipe: connection.Connection, log: str) -> None:
    """Trains one step after the other, whose names come through the pipe.

    Args:
        config: of the chain.
        root: its folder.
        pipe: which takes the final metrics of each step, or its error.
        log: file of what the steps print.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    steps = {step.name: step for step in chain.plan(config, root)}
    while name := pipe.recv():
        print(f"== {name}", flush=True)
        try:
            result = loop.run(steps[name].config, steps[name].workdir)
        except errors.Preempted as stopped:
            print(stopped, flush=True)
            return
        except Exception as error:  # The other steps go on.
            traceback.print_exc()
            result = dict(error=f"{type(error).__name__}: {error}")
        pipe.send(result)


def stop(workers: Sequence[Worker]) -> None:
    """Ends the processes, which save what they train if `GRACE` suffices."""
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        worker.process.kill()
        worker.process.join()


def leave(signum: int, frame: types.FrameType | None) -> NoReturn:
    """Handles SIGTERM and Ctrl-C: the workers are ended on the way out."""
    sys.exit(errors.EXIT_AGAIN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
