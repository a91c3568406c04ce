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
    """One workdir, and the process that trains in it, if any.

    Args:
        folder: takes the workdir and the log.
        stage: to train.
        steps: in all.
    """

    def __init__(self, folder: pathlib.Path, stage: str, steps: int):
        folder.mkdir(parents=True)
        self.workdir, self.log = folder / stage, folder / "log"
        self.arguments = [str(folder), stage, f"--steps={steps}"]
        self.arguments += ["--eval=3", "--slow=0.02"]

    def start(self) -> None:
        """Starts a process; notes the newest checkpoint it can restore."""
        self.newest = max(self.committed(), default=None)
        self.inode_before = self.metrics_inode()
        self.log.unlink(missing_ok=True)
        self.process = SERVER.Process(
            target=pair.live, args=(self.arguments, str(self.log))
        )
        self.process.start()
        self.began = time.monotonic()

    @property
    def output(self) -> str:
        """Standard output and standard error of the process."""
        return self.log.read_text() if self.log.exists() else ""

    def metrics_inode(self) -> int | None:
        """Identifies the file of metrics: every process begins with a new one."""
        path = self.workdir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None

    def committed(self) -> list[int]:
        """Steps of the finished checkpoints."""
        names = [path.name for path in self.workdir.glob("checkpoints/*")]
        return [int(name) for name in names if name.isdigit()]

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(True for _ in self.workdir.glob("checkpoints/*tmp*"))

    def logged(self) -> int:
        """The newest step that this process has logged, 0 before the first."""
        if self.metrics_inode() in (None, self.inode_before):
            return 0
        text = (self.workdir / "metrics.jsonl").read_text()
        steps = re.findall(r'"step": (\d+)', text)
        return int(steps[-1]) if steps else 0

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for `condition`; False if the process ended before."""
        while not condition():
            if not self.process.is_alive():
                return False
            if time.monotonic() - self.began > PATIENCE:
                self.process.kill()
                raise AssertionError(f"nothing happens: {self.output}")
            time.sleep(0.002)
        return True

    def end(self, how: str) -> str:
        """Ends the process, and checks its exit status and its output.

        Args:
            how: `term`, `kill`, or `itself`, which waits for it.

        Returns:
            The exit status.
        """
        if how == "term":
            self.process.terminate()
        elif how == "kill":
            self.process.kill()
        self.process.join(PATIENCE)
        status, output = self.process.exitcode, self.output
        restored = re.findall(r"^restored step (\d+)$", output, re.MULTILINE)
        if restored or (self.newest is not None and how != "kill"):
            assert restored == [str(self.newest)], (self.newest, output)
        # A run that is asked at its last step is simply done.
        expected = {"itself": {0}, "term": {AGAIN, 0}, "kill": {-9}}[how]
        assert status in expected, (how, status, output)
        return str(status)


def leftovers(workdir: pathlib.Path) -> list[str]:
    """Names of the temporary and broken files in a workdir."""
    paths = [*workdir.glob("checkpoints/*"), *workdir.glob("*")]
    torn = [path.name for path in paths if re.search(r"tmp|partial", path.name)]
    return [*torn, *(path.name for path in workdir.glob("broken*"))]


def results(run: Run) -> dict:
    """The arrays and logged values of a finished run, to be compared."""
    rows = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    loaded = checkpoint.read_run(str(run.workdir), "--workdir", optimiser_state=True)
    return dict(
        arrays={
            part: len(jax.tree.leaves(tree)) for part, tree in loaded.state.items()
        },
        digests=[line for line in inspect.facts(loaded) if "sha256" in line],
        rows=[{k: v for k, v in row.items() if k not in clock.TIMES} for row in rows],
        done=json.loads((run.workdir / "DONE").read_text()),
    )


def check(stage: str, kills: int, terms: int, seed: int, folder: pathlib.Path) -> dict:
    """Runs a stage twice, once undisturbed, and compares the results.

    Args:
        stage: to train.
        kills: how often SIGKILL comes.
        terms: how often SIGTERM comes.
        seed: of the moments.
        folder: takes both runs.

    Returns:
        {event: how often it happened}.
    """
    steps = STEPS_PER_LIFE * (kills + terms + 1)
    rng = random.Random(f"{seed} {stage}")
    undisturbed = Run(folder / "whole", stage, steps)
    killed = Run(folder / "parts", stage, steps)
    undisturbed.start()
    undisturbed.end("itself")
    plan = ["term"] * terms + ["kill"] * kills
    rng.shuffle(plan)
    happened = collections.Counter()
    for how in plan:
        killed.start()
        happened["restarts that had to restore"] += killed.newest is not None
        when = rng.choice(MOMENTS) if how == "kill" else "at a step"
        if when == "at the start":
            time.sleep(rng.uniform(0.0, 3.0))
        else:
            first = killed.newest or 0
            target = min(steps - 3, first + rng.randint(1, STEPS_PER_LIFE))
            alive = killed.until(functools.partial(reach, killed, target))
            if alive and when == "in a save":
                alive = killed.until(killed.saving)
            assert alive, f"it ended before it was killed: {killed.output}"
            time.sleep(rng.uniform(0.0, 0.03))
        torn = killed.saving()
        status = killed.end(how)
        happened[f"{how} {when}"] += 1
        happened[f"{how} with a save under way"] += torn
        happened[f"{how} ended with {status}"] += 1
    killed.start()
    killed.end("itself")
    assert not leftovers(killed.workdir), leftovers(killed.workdir)
    expected = results(undisturbed)
    compare(stage, results(killed), expected)
    arrays = {f"arrays of {part}": n for part, n in expected["arrays"].items()}
    return dict(happened, steps=steps, rows=len(expected["rows"]), **arrays)


def compare(stage: str, actual: dict, expected: dict) -> None:
    """Asserts that the `results` of two runs of a stage are equal."""
    for key in expected:
        pairs = zip(actual[key], expected[key], strict=False)
        first = next(((a, b) for a, b in pairs if a != b), "its length")
        assert actual[key] == expected[key], f"{stage}: {key} differ, first in {first}"


def reach(run: Run, step: int) -> bool:
    """Whether a process has logged `step` and saved a newer checkpoint."""
    return run.logged() >= step and max(run.committed(), default=0) > (run.newest or 0)


def main() -> int:
    """Kills runs of every stage asked for, and prints what happened to them."""
    parser = argparse.ArgumentParser(description=__doc__)
    all_stages = (*runs.STAGES, *runs.SEGMENTATION, *runs.DETECTION)
    parser.add_argument(
        "--stages",
        required=True,
        help=f"separated by commas, of {', '.join(all_stages)}",
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="")
    stages = args.stages.split(",")
    for unknown in set(stages) - set(all_stages):
        parser.error(f"--stages: {unknown} is not among {', '.join(all_stages)}")
    for stage in stages:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            events = check(
                stage, args.kills, args.terms, args.seed, pathlib.Path(folder)
            )
        events["seconds"] = round(time.monotonic() - began)
        print(
            stage, "equal bit for bit:", json.dumps(events, sort_keys=True), flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
