# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Kills a tiny run again and again, and compares it with one nobody touched.

    python tests/kill_test.py --stages=pretrain,specific_seg --kills=20 --terms=5

SIGKILL comes at a random moment of a random step, while a checkpoint is being written,
or while the run is still starting; SIGTERM has to end it with its own status. In the
end parameters, batch statistics, optimiser and logged values have to be the same bits.
"""

import argparse
import collections
import functools
import json
import multiprocessing
import os
import pathlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable

import jax

import pair
import runs
from g2sd_jax import checkpoint, clock
from g2sd_jax.tools import inspect

# Every life is a process of its own, forked from one that has made the imports and
# nothing else: they take longer than the life.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pair"])
MOMENTS = ("at a step", "at a step", "in a save", "in a save", "at the start")
AGAIN = 75  # As the README has it; read from nowhere, for this is the test of it.
STEPS_PER_LIFE = 8
PATIENCE = 300.0  # Seconds after which a life is a hang.


class Run:
    """One workdir and the process that is at work in it, if any."""

    def __init__(self, folder: pathlib.Path, stage: str, steps: int):
        folder.mkdir(parents=True)
        self.folder, self.workdir, self.log = folder, folder / stage, folder / "log"
        self.arguments = [str(folder), stage, f"--steps={steps}"]
        self.arguments += ["--eval=3", "--slow=0.02"]

    def start(self) -> None:
        self.newest = max(self.committed(), default=None)
        self.rows = self.rows_of()
        self.log.unlink(missing_ok=True)
        given = (self.arguments, str(self.log))
        self.process = SERVER.Process(target=pair.live, args=given)
        self.process.start()
        self.began = time.monotonic()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def rows_of(self):
        """Which file the rows are in: every life begins with a new one."""
        path = self.workdir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None

    def committed(self) -> list[int]:
        names = [path.name for path in self.workdir.glob("checkpoints/*")]
        return [int(name) for name in names if name.isdigit()]

    def saving(self) -> bool:
        return any(True for _ in self.workdir.glob("checkpoints/*tmp*"))

    def logged(self) -> int:
        """The newest step that this life has logged."""
        if self.rows_of() in (None, self.rows):
            return 0
        text = (self.workdir / "metrics.jsonl").read_text()
        found = re.findall(r'"step": (\d+)', text)
        return int(found[-1]) if found else 0

    def until(self, condition: Callable) -> bool:
        """Waits for `condition`; False if the process ended before."""
        while not condition():
            if not self.process.is_alive():
                return False
            if time.monotonic() - self.began > PATIENCE:
                self.process.kill()
                raise AssertionError(f"nothing happens: {self.said}")
            time.sleep(0.002)
        return True

    def end(self, how: str) -> str:
        """Ends the process (`term`, `kill`, or by itself), and checks what it said."""
        if how == "term":
            self.process.terminate()
        elif how == "kill":
            self.process.kill()
        self.process.join(PATIENCE)
        status, said = self.process.exitcode, self.said
        restored = re.findall(r"^restored step (\d+)$", said, re.MULTILINE)
        if restored or (self.newest is not None and how != "kill"):
            assert restored == [str(self.newest)], (self.newest, said)
        # A run that is asked at its last step is simply done.
        expected = {"itself": {0}, "term": {AGAIN, 0}, "kill": {-9}}[how]
        assert status in expected, (how, status, said)
        return str(status)


def leftovers(workdir: pathlib.Path) -> list[str]:
    paths = [*workdir.glob("checkpoints/*"), *workdir.glob("*")]
    torn = [path.name for path in paths if re.search(r"tmp|partial", path.name)]
    return [*torn, *(path.name for path in workdir.glob("broken*"))]


def facts(run: Run) -> dict:
    """What two runs are compared by."""
    rows = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    held = checkpoint.read_run(str(run.workdir), "--workdir", all_of_it=True)
    return dict(
        arrays={part: len(jax.tree.leaves(tree)) for part, tree in held.state.items()},
        digests=[line for line in inspect.facts(held) if "sha256" in line],
        rows=[{k: v for k, v in row.items() if k not in clock.TIMES} for row in rows],
        done=json.loads((run.workdir / "DONE").read_text()),
    )


def check(stage: str, kills: int, terms: int, seed: int, folder: pathlib.Path) -> dict:
    """Runs `stage` twice, once undisturbed; returns what happened to the other."""
    steps = STEPS_PER_LIFE * (kills + terms + 1)
    rng = random.Random(f"{seed} {stage}")
    whole = Run(folder / "whole", stage, steps)
    parts = Run(folder / "parts", stage, steps)
    whole.start()
    whole.end("itself")
    plan = ["term"] * terms + ["kill"] * kills
    rng.shuffle(plan)
    happened = collections.Counter()
    for how in plan:
        parts.start()
        happened["restarts that had to restore"] += parts.newest is not None
        when = rng.choice(MOMENTS) if how == "kill" else "at a step"
        if when == "at the start":
            time.sleep(rng.uniform(0.0, 3.0))
        else:
            first = parts.newest or 0
            target = min(steps - 3, first + rng.randint(1, STEPS_PER_LIFE))
            alive = parts.until(functools.partial(reach, parts, target))
            if alive and when == "in a save":
                alive = parts.until(parts.saving)
            assert alive, f"it ended before it was killed: {parts.said}"
            time.sleep(rng.uniform(0.0, 0.03))
        torn = parts.saving()
        status = parts.end(how)
        happened[f"{how} {when}"] += 1
        happened[f"{how} with a save under way"] += torn
        happened[f"{how} ended with {status}"] += 1
    parts.start()
    parts.end("itself")
    assert not leftovers(parts.workdir), leftovers(parts.workdir)
    expected = facts(whole)
    compare(stage, facts(parts), expected)
    arrays = {f"arrays of {part}": n for part, n in expected["arrays"].items()}
    return dict(happened, steps=steps, rows=len(expected["rows"]), **arrays)


def compare(stage: str, found: dict, expected: dict) -> None:
    for key in expected:
        both = zip(found[key], expected[key], strict=False)
        first = next((each for each in both if each[0] != each[1]), "its length")
        assert found[key] == expected[key], f"{stage}: {key} differ, first in {first}"


def reach(run: Run, step: int) -> bool:
    """Whether a life has got to `step`, and will have brought the run further."""
    return run.logged() >= step and max(run.committed(), default=0) > (run.newest or 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    known = (*runs.STAGES, *runs.SEGMENTATION)
    parser.add_argument(
        "--stages", required=True, help=f"separated by commas, of {', '.join(known)}"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="")
    stages = args.stages.split(",")
    for unknown in set(stages) - set(known):
        parser.error(f"--stages: {unknown} is not among {', '.join(known)}")
    for stage in stages:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            told = check(stage, args.kills, args.terms, args.seed, pathlib.Path(folder))
        told["seconds"] = round(time.monotonic() - began)
        print(stage, "equal bit for bit:", json.dumps(told, sort_keys=True), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
