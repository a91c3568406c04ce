# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Two real processes of four devices are one run of eight, whatever befalls them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import member
import runs
from g2sd_jax import checkpoint, loop, metrics

HERE = pathlib.Path(__file__).parents[1]
STAGES = ("generic_distill", "finetune", "linprobe", "finetune:task=segmentation")
DETECTOR = "finetune:task=detection"
STEPS = 24  # Of an interrupted run; a checkpoint every third.


@contextlib.contextmanager
def started(count, workdir, stages, *arguments, odd=()):
    """`count` processes of one run, the last with `odd`; none outlives the test."""
    devices = 8 // count
    environment = dict(
        os.environ,
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        PYTHONPATH=f"{HERE}{os.pathsep}{HERE.parent}",
    )
    command = [sys.executable, str(HERE / "pair.py"), str(workdir), *stages, *arguments]
    command += [f"--coordinator=localhost:{member.free_port()}", f"--processes={count}"]
    processes = [
        subprocess.Popen(
            [
                *(*command, f"--process={index}", "--timeout=120"),
                *(odd if index == count - 1 else ()),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(processes, seconds=500):
    """What they said, once all have ended by themselves."""
    said = [process.communicate(timeout=seconds)[0] for process in processes]
    return [process.returncode for process in processes], said


def told(workdir):
    rows = metrics.read_lines(workdir / "metrics.jsonl")
    done = json.loads((workdir / "DONE").read_text())
    return np.array([row["loss"] for row in rows if "loss" in row]), done


def check_equal(workdir, expected):
    losses, done = told(workdir)
    expected_losses, expected_done = told(expected)
    assert len(losses) == len(expected_losses) == done["step"]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    counts = [key for key in expected_done if "count" in key or "pixels" in key]
    assert [done[key] for key in counts] == [expected_done[key] for key in counts]
    # A pixel between two classes may fall to either, by the rounding of the losses.
    few = 0.01 if "eval/pixels" in done else None
    # The AP of objects of a size that there is none of is no number, in both.
    none = {key for key, value in expected_done.items() if value is None}
    assert none == {key for key, value in done.items() if value is None}
    for values in (done, expected_done):
        for key in none:
            del values[key]
    assert done == pytest.approx(expected_done, rel=1e-6, abs=few)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with started(2, tmp_path / "two", STAGES) as pair:
        status, said = ended(pair)
    assert status == [0, 0], "\n".join(said)
    for stage in STAGES:
        loop.run(
            runs.small(stage, first_batch_images=10), str(tmp_path / "one" / stage)
        )
        check_equal(tmp_path / "two" / stage, tmp_path / "one" / stage)
        # Ten pictures, of which the second process holds two.
        shown, expected = (
            np.asarray(Image.open(tmp_path / where / stage / "first_batch.png"), int)
            for where in ("two", "one")
        )
        assert np.abs(shown - expected).max() <= 1 and shown.std() > 1


@pytest.mark.slow
def test_two_processes_find_the_objects_that_one_finds(tmp_path):
    """The AP of a detector that has learned enough to find some."""
    trained = str(tmp_path / "trained")
    config = runs.small(DETECTOR, batch=8, total_steps=300, first_batch_images=0)
    config.optim.update(lr=5e-3, layer_decay=1.0)
    loop.run(config, trained)
    with started(2, tmp_path / "two", [DETECTOR], f"--init={trained}") as pair:
        status, said = ended(pair)
    assert status == [0, 0], "\n".join(said)
    config = runs.small(DETECTOR, init_from=trained, first_batch_images=10)
    loop.run(config, str(tmp_path / "one" / DETECTOR))
    check_equal(tmp_path / "two" / DETECTOR, tmp_path / "one" / DETECTOR)
    _, done = told(tmp_path / "two" / DETECTOR)
    assert done["eval/box_AP50"] > 0.5 and done["eval/mask_AP50"] > 0.5


def wait_for_step(workdir, step, processes):
    path = workdir / "metrics.jsonl"
    until = time.monotonic() + 300
    while not path.exists() or not metrics.read_lines(path)[step - 1 :]:
        assert time.monotonic() < until
        if any(process.poll() for process in processes):
            pytest.fail("\n".join(ended(processes, 30)[1]))
        time.sleep(0.05)


def committed(workdir) -> int:
    saved = checkpoint.Manager(str(workdir))
    try:
        return saved.latest()
    finally:
        saved.close()


@pytest.mark.slow
def test_a_run_survives_what_befalls_its_processes(tmp_path):
    """Asked to stop, killed at either end, continued by one and by two processes."""
    (stage,), workdir = ("linprobe",), tmp_path / "run" / "linprobe"
    slowly = [f"--steps={STEPS}", "--slow=0.3"]

    # SIGTERM to one: both save the same step and say that the run can go on.
    with started(2, tmp_path / "run", [stage], *slowly) as pair:
        wait_for_step(workdir, 2, pair)
        pair[1].send_signal(signal.SIGTERM)
        status, said = ended(pair, 120)
    assert status == [75, 75], "\n".join(said)
    stopped = [line for text in said for line in text.splitlines() if "stopped" in line]
    assert len(set(stopped)) == 1 and len(stopped) == 2
    assert f"step {committed(workdir)} of {STEPS} is saved" in stopped[0]

    # SIGKILL of either: the other names it, before the runtime adds its own.
    for victim in (0, 1):
        step = committed(workdir)
        with started(2, tmp_path / "run", [stage], *slowly) as pair:
            wait_for_step(workdir, step + 4, pair)
            pair[victim].kill()
            began = time.monotonic()
            status, said = ended(pair, 120)
            assert time.monotonic() - began < 60
        assert f"restored step {step}\n" in said[0]
        assert status[1 - victim] == 76, said[1 - victim]
        lines = said[1 - victim].splitlines()
        ours = next(i for i, line in enumerate(lines) if line.startswith("error:"))
        assert f"error: process {victim} (" in lines[ours]
        assert not any("Terminating process" in line for line in lines[:ours])
        assert committed(workdir) > step

    # Two processes -> one, and the numbers are those of a run nobody touched.
    with started(1, tmp_path / "run", [stage], f"--steps={STEPS}") as alone:
        status, said = ended(alone)
    assert status == [0], said[0]
    config = runs.small(stage, total_steps=STEPS)
    loop.run(config, str(tmp_path / "whole"))
    check_equal(workdir, tmp_path / "whole")


@pytest.mark.slow
def test_one_process_then_two(tmp_path):
    with started(1, tmp_path, ["linprobe"], "--steps=9", "--slow=0.3") as alone:
        wait_for_step(tmp_path / "linprobe", 3, alone)
        alone[0].send_signal(signal.SIGTERM)
        status, said = ended(alone, 120)
    assert status == [75], said[0]
    with started(2, tmp_path, ["linprobe"], "--steps=9") as pair:
        status, said = ended(pair)
    assert status == [0, 0] and "restored step" in said[0], "\n".join(said)
    loop.run(runs.small("linprobe", total_steps=9), str(tmp_path / "whole"))
    check_equal(tmp_path / "linprobe", tmp_path / "whole")


def test_another_config_on_one_process_is_told_by_key(tmp_path):
    with started(2, tmp_path, ["linprobe"], odd=["--seed=7"]) as pair:
        status, said = ended(pair, 200)
    assert status == [2, 2], "\n".join(said)
    for text in said:
        assert "differ in their config: seed is 7 on process 1" in text
