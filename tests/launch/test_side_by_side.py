# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of a chain side by side, and pictures decoded once for them."""

import contextlib
import json
import math
import multiprocessing
import pathlib
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

import files
from g2sd_jax import recipes
from g2sd_jax import workdir as workdirs
from g2sd_jax.tools import chain

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture(scope="module")
def launcher():
    sys.path.insert(0, str(LAUNCH))
    try:
        import side_by_side

        yield side_by_side
    finally:
        sys.path.remove(str(LAUNCH))


def schedule(launcher, root, seeds=(0, 1)):
    """One teacher for all seeds; students that wait for it, and one that does not."""
    taught = {"teacher.checkpoint": "{teacher}"}
    steps = (
        ("teacher", "pretrain:smoke", dict(seed=0)),
        ("alone", "pretrain:smoke", {}),
        ("taught", "generic_distill:smoke", taught),
    )
    config = dict(title="", note="", seeds=seeds, steps=steps, rows=())
    config = ConfigDict(config | dict(reconstructions="", cache_dir=None))
    config.progress = False
    planned = launcher.by_priority(config, chain.plan(config, str(root)))
    return launcher.Schedule(planned, str(root))


def worker(launcher, log, answers=()):
    """A thread in the place of a process, which answers as `answers` says."""
    ours, theirs = multiprocessing.Pipe()

    def work():
        with theirs, contextlib.suppress(EOFError):
            while name := theirs.recv():
                log.append(name)
                answer = dict(answers).get(name, {"step": 2, "eval/top1": 50.0})
                if answer is None:  # The process dies.
                    return
                theirs.send(answer)

    threading.Thread(target=work, daemon=True).start()
    return launcher.Worker(types.SimpleNamespace(), ours)


def rows(root):
    return [json.loads(x) for x in (root / "rows.jsonl").read_text().splitlines()]


def test_steps_run_by_priority_once_what_they_need_is_done(launcher, tmp_path):
    log, order = [], schedule(launcher, tmp_path)
    order.run([worker(launcher, log)], math.inf)
    assert log == [
        "seed0/teacher",
        "seed0/alone",
        "seed1/alone",
        "seed0/taught",
        "seed1/taught",
    ]
    assert not order.waiting and not order.failed
    assert [row["step"] for row in rows(tmp_path)] == log
    assert rows(tmp_path)[-1]["seed"] == 1
    assert rows(tmp_path)[-1]["result"]["eval/top1"] == 50.0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| step | seeds | steps | seconds | eval/top1 |"
    assert lines[2:] == [
        "| teacher | 0 | 2 | 0 | 50.00 |",
        "| alone | 0, 1 | 2 | 0, 0 | 50.00 ± 0.00 |",
        "| taught | 0, 1 | 2 | 0, 0 | 50.00 ± 0.00 |",
    ]


def test_what_is_done_before_does_not_run_again(launcher, tmp_path):
    done = tmp_path / "seed0" / "teacher" / workdirs.DONE
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    log, order = [], schedule(launcher, tmp_path, seeds=(0,))
    order.run([worker(launcher, log)], math.inf)
    assert log == ["seed0/alone", "seed0/taught"]


@pytest.mark.parametrize("answer", [{"error": "ValueError: no"}, None])
def test_a_step_that_fails_keeps_only_its_dependents_from_running(
    launcher, tmp_path, answer
):
    log, order = [], schedule(launcher, tmp_path)
    answers = {"seed0/teacher": answer}
    order.run([worker(launcher, log, answers) for _ in range(2)], math.inf)
    assert sorted(log) == ["seed0/alone", "seed0/teacher", "seed1/alone"]
    assert order.failed == {"seed0/teacher"}
    assert {step.name for step in order.waiting} == {"seed0/taught", "seed1/taught"}


def test_at_the_time_to_stop_what_runs_is_left_for_the_next_time(launcher, tmp_path):
    ours, _ = multiprocessing.Pipe()
    deaf = launcher.Worker(types.SimpleNamespace(), ours)
    order = schedule(launcher, tmp_path, seeds=(0,))
    order.run([deaf], time.monotonic() + 0.2)
    assert len(order.waiting) == 3
    assert not order.done


@pytest.mark.slow
def test_a_chain_is_trained_by_two_processes_and_reported_by_the_verb(tmp_path):
    argv = ["--config=chains/digits:smoke,steps=2", f"--workdir={tmp_path}"]
    script = [sys.executable, str(LAUNCH / "side_by_side.py"), "--workers=2"]
    done = subprocess.run([*script, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 steps done, 0 failed; 0 left" in done.stdout
    assert {row["result"]["step"] for row in rows(tmp_path)} == {2}
    chain.run(recipes.load("chains/digits:smoke,steps=2"), str(tmp_path))
    assert (tmp_path / "report.md").exists()


def test_pictures_are_decoded_once_and_subsets_are_balanced(tmp_path):
    files.write(tmp_path / "set", files.photographs())
    command = [sys.executable, str(LAUNCH / "npz_splits.py"), "--classes=2"]
    command += [f"--path={tmp_path / 'set'}", f"--out={tmp_path}", "--size=32"]
    command += ["--splits=train,val", "--subsets=part=4"]
    subprocess.run(command, check=True, capture_output=True)
    with (
        np.load(tmp_path / "part.npz") as part,
        np.load(tmp_path / "train.npz") as all_,
    ):
        np.testing.assert_array_equal(np.bincount(part["label"]), [2, 2])
        np.testing.assert_array_equal(part["image"], all_["image"][:4])
