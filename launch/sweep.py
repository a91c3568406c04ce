# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a sweep: python launch/sweep.py --sweep=configs/sweeps/x.py --workdir=DIR

A sweep file has RECIPE, METRIC, BEST (min or max), SHARED (overrides of every run) and
`get_sweep()`: override dicts, or a grid of values by key. Runs lie in DIR/NAME, what is
DONE is not run again, and what was interrupted goes on. At the end DIR/sweep.md and
DIR/sweep.png compare them. --emit writes the commands instead of running them.
"""

import argparse
import collections
import itertools
import json
import math
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from matplotlib import figure

ROOT = pathlib.Path(__file__).resolve().parents[1]
AGAIN = 75  # Exit status of a run that was asked to stop, and saved.
MOST_RESTARTS = 100  # Of one run, before it counts as failed.
FIELDS = ("RECIPE", "METRIC", "BEST", "SHARED", "get_sweep")


def main(argv: Sequence[str]) -> int:
    """Runs, compares or writes out a sweep; returns the exit status."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--sweep", required=True, help="a file such as configs/sweeps/digits_lr.py")
    add("--workdir", required=True, help="folder of all its runs")
    add("--at-once", type=int, default=1, help="local runs side by side")
    add("--report", action="store_true", help="only compare what is there")
    add("--emit", choices=("slurm", "pods"), help="write the commands, and run none")
    add("--pod", default="", help="for --emit=pods: options of tpu_pod.sh, as one text")
    args = parser.parse_args(argv)
    args.sweep = os.path.expanduser(args.sweep)
    if not args.emit:  # Elsewhere `~` is another folder; g2sd expands it there.
        args.workdir = os.path.expanduser(args.workdir)
    signal.signal(signal.SIGTERM, leave)
    try:
        sweep = load(args.sweep)
        if args.at_once < 1:
            raise ValueError(f"--at-once={args.at_once} must be at least 1.")
        runs = commands(sweep, args.workdir)
        if args.emit:
            print(emit(args, runs))
            return 0
        if "://" in args.workdir:
            raise ValueError(
                f"--workdir={args.workdir}: runs are started and compared on local "
                "disks alone; --emit=slurm or pods trains there, and a copy of it can "
                "be compared with --report."
            )
        failed = [] if args.report else local(runs, args.workdir, args.at_once)
        print(report(sweep, runs, args.workdir))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in failed:
        print(f"failed: {name}, see {args.workdir}/{name}.log", file=sys.stderr)
    return 1 if failed else 0


def load(path: str) -> dict[str, Any]:
    """Runs a sweep file and returns the names it defines."""
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--sweep={path!r} is not a file.")
    sys.path.append(str(ROOT))  # For g2sd_jax.configs, if nothing is installed.
    try:
        sweep = runpy.run_path(path)
    except ImportError as error:
        if (error.name or "").split(".")[0] != "configs":  # Our name once.
            raise
        raise ValueError(
            f"--sweep={path!r}: {error}; the shipped recipes are imported "
            "`from g2sd_jax.configs`."
        ) from error
    missing = [name for name in FIELDS if name not in sweep]
    if missing:
        raise ValueError(
            f"--sweep={path!r} has no {', '.join(missing)}; "
            "configs/sweeps/digits_lr.py is one that has."
        )
    if sweep["BEST"] not in ("min", "max"):
        raise ValueError(f"--sweep={path!r}: BEST={sweep['BEST']!r} is min or max.")
    return sweep


def changes_of(sweep: dict) -> list[dict]:
    """Returns one dict of overrides per run, from a list of them or from a grid."""
    grid = sweep["get_sweep"]()
    if isinstance(grid, dict):
        return [
            dict(zip(grid, values, strict=True))
            for values in itertools.product(*grid.values())
        ]
    return list(grid)


def commands(sweep: dict, workdir: str) -> dict[str, list[str]]:
    """Returns {name of a run: its arguments of `g2sd`}."""
    runs = {}
    for changes in changes_of(sweep):
        words = [f"{key.rpartition('.')[2]}={value}" for key, value in changes.items()]
        name = re.sub(r"[^\w.=+-]+", "_", "_".join(words)) or "only"
        if name in runs:
            raise ValueError(f"two runs of the sweep would both be called {name!r}.")
        overrides = {**flat(sweep["SHARED"]), **flat(changes)}
        runs[name] = ["train", f"--config={sweep['RECIPE']}"]
        # Joined as text: pathlib would make one slash of the two in gs://.
        runs[name] += [f"--workdir={workdir.rstrip('/')}/{name}"]
        runs[name] += [f"--config.{key}={value}" for key, value in overrides.items()]
    if not runs:
        raise ValueError("the sweep has no runs.")
    return runs


def flat(tree: dict, prefix: str = "") -> dict:
    """Flattens nested overrides into `{"a.b": value}`."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def local(runs: dict[str, list[str]], workdir: str, at_once: int) -> list[str]:
    """Runs those that are not DONE on this machine.

    Args:
        runs: of `commands`.
        workdir: folder of all of them.
        at_once: number of runs side by side.

    Returns:
        The names of the runs that failed.
    """
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = collections.deque(n for n in runs if not (folder / n / "DONE").exists())
    running, failed = {}, []
    restarts, rest_until = collections.Counter(), {}
    try:
        while waiting or running:
            ready = [name for name in waiting if rest_until.get(name, 0) <= time.time()]
            for name in ready[: at_once - len(running)]:
                waiting.remove(name)
                command = [sys.executable, "-m", "g2sd_jax.cli", *runs[name]]
                print(f"[{len(runs) - len(waiting)}/{len(runs)}] {name}", flush=True)
                with open(folder / f"{name}.log", "a") as log:
                    running[name] = subprocess.Popen(
                        command, cwd=pathlib.Path.cwd(), stdout=log, stderr=log
                    )
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode == AGAIN and restarts[name] < MOST_RESTARTS:
                    # At once the first time, then a second later each time: the cause
                    # may need a while to pass.
                    rest_until[name] = time.time() + min(60, restarts[name])
                    restarts[name] += 1
                    waiting.append(name)
                elif process.returncode:
                    failed.append(name)  # The others go on.
    finally:
        for process in running.values():  # Interrupted: each saves and leaves.
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def leave(signum: int, frame: types.FrameType | None) -> NoReturn:
    """Handles SIGTERM, such as Slurm's: `local` ends its runs on the way out."""
    sys.exit(AGAIN)


def emit(args: argparse.Namespace, runs: dict[str, list[str]]) -> str:
    """Writes one command per run for Slurm or pods; returns how to start them."""
    # Of a bucket's runs the commands lie here.
    folder = pathlib.Path("." if "://" in args.workdir else args.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{args.emit}.txt"
    lines = []
    for name, words in runs.items():
        if args.emit == "slurm":
            lines.append(shlex.join(words[1:]))
            continue
        rest = [word for word in words[1:] if not word.startswith("--workdir=")]
        pod = [
            "bash",
            "launch/tpu_pod.sh",
            f"--name={dns(name)}",
            *shlex.split(args.pod),
        ]
        pod += [*(word for word in words if word.startswith("--workdir=")), "--", *rest]
        lines.append(shlex.join(pod))
    path.write_text("\n".join(lines) + "\n")
    if args.emit == "slurm":
        last = len(lines) - 1
        return f"sbatch --array=0-{last} launch/slurm.sbatch --commands={path}"
    return f"bash {path}   # or each line in a terminal of its own"


def dns(name: str) -> str:
    """Makes a name that Google Cloud accepts for resources."""
    return "g2sd-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50]


def report(sweep: dict, runs: dict[str, list[str]], workdir: str) -> str:
    """Writes sweep.md and sweep.png; returns the table and the best run."""
    folder, metric = pathlib.Path(workdir), sweep["METRIC"]
    curves = {name: curve(folder / name / "metrics.jsonl", metric) for name in runs}
    pick = max if sweep["BEST"] == "max" else min
    lines = [f"| run | {metric}, last | {sweep['BEST']} | at step | steps | done |"]
    lines.append("|---|---|---|---|---|---|")
    last = {}
    for name, points in curves.items():
        done = "yes" if (folder / name / "DONE").exists() else "no"
        if not points:
            lines.append(f"| {name} | | | | | {done} |")
            continue
        step, last[name] = points[-1]
        value, at = pick(
            ((value, -step) for step, value in points if math.isfinite(value)),
            default=(math.nan, 0),
        )
        lines.append(
            f"| {name} | {last[name]:.5g} | {value:.5g} | {abs(at)} | {step} | {done} |"
        )
    finite = {name: value for name, value in last.items() if math.isfinite(value)}
    best = pick(finite, key=finite.get) if finite else "none yet"
    lines += ["", f"best by the last {metric} ({sweep['BEST']}): {best}"]
    text = "\n".join(lines)
    (folder / "sweep.md").write_text(text + "\n")
    draw(curves, metric, folder / "sweep.png")
    return text


def curve(path: pathlib.Path, metric: str) -> list[tuple[int, float]]:
    """Reads a metric from `metrics.jsonl`, as [(step, value)] in order of the steps."""
    if not path.exists():
        return []
    values = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # The line a killed run was writing.
            continue
        if metric in row:
            values[row["step"]] = float(row[metric])
    return sorted(values.items())


def draw(
    curves: dict[str, list[tuple[int, float]]], metric: str, path: pathlib.Path
) -> None:
    """Draws the curve of every run into a picture."""
    drawing = figure.Figure(figsize=(7, 4), layout="constrained")
    axes = drawing.subplots()
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(xlabel="step", ylabel=metric)
    if any(curves.values()):
        axes.legend(fontsize="small")
    drawing.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
