# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Two real processes of four devices each are one run of eight."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import runs
from g2sd_jax import metrics, train

STAGES = ("generic_distill", "finetune", "finetune:task=segmentation")
ONE_OF_TWO = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=60)
jax.config.update("jax_default_matmul_precision", "highest")
import runs
from g2sd_jax import train
for stage in sys.argv[4:]:
    train.run(runs.small(stage, shown=10), f"{sys.argv[3]}/{stage}")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def told(workdir):
    rows = metrics.read_lines(workdir / "metrics.jsonl")
    done = json.loads((workdir / "DONE").read_text())
    return np.array([row["loss"] for row in rows if "loss" in row]), done


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    here = pathlib.Path(__file__).parent
    environment = dict(
        os.environ,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        PYTHONPATH=f"{here}{os.pathsep}{here.parent}",
    )
    address, folder = f"localhost:{free_port()}", tmp_path / "two"
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, address, str(i), str(folder), *STAGES],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(said)
    for stage in STAGES:
        train.run(runs.small(stage, shown=10), str(tmp_path / "one" / stage))
        losses, done = told(folder / stage)
        expected, expected_done = told(tmp_path / "one" / stage)
        assert len(losses) == 6
        np.testing.assert_allclose(losses, expected, rtol=2e-5)
        assert done.get("eval/pixels") == expected_done.get("eval/pixels")
        # A pixel between two classes may fall to either, by the rounding of the losses.
        few = 0.01 if "eval/pixels" in done else None
        assert done == pytest.approx(expected_done, rel=2e-5, abs=few)
        # Ten pictures, of which the second process holds two.
        shown, expected = (
            np.asarray(Image.open(tmp_path / where / stage / "first_batch.png"), int)
            for where in ("two", "one")
        )
        assert np.abs(shown - expected).max() <= 1 and shown.std() > 1
