# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""An exported detector finds what predict does; its files say what they hold."""

import json

import jax
import numpy as np
import pytest
from jax import export

import finished_runs
import runs
from g2sd_jax import cli, finished
from g2sd_jax.data.memory import fake

NAMES = ["cat", "dog", "cup", "pen", "key"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a distilled student, its config and its variables."""
    folder = tmp_path_factory.mktemp("detector")
    return finished_runs.workdir(folder, runs.DETECTION[1], class_names=NAMES)


@pytest.mark.slow  # Two programs of twenty seconds to compile.
def test_the_program_finds_what_evaluation_does(run, tmp_path):
    workdir, config, variables = run
    argv = ["export", f"--workdir={workdir}", "--format=stablehlo", f"--out={tmp_path}"]
    assert cli.main(argv) == 0
    program = export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    batch = fake.load(config, "val", ("boxes",)).fetch(np.arange(2))
    evaluator = finished.from_run(workdir).stage.evaluators["eval"]
    wanted = jax.jit(evaluator.predict)(variables, {}, batch)
    assert np.asarray(wanted["valid"]).any()
    got = jax.jit(program.call)(batch["image"], batch["size"])
    described = json.loads((tmp_path / "preprocessing.json").read_text())
    assert described["class_names"] == NAMES and described["canvas"] == [64, 64]
    outputs = described["program"]["output"]
    assert set(got) == set(outputs) == set(wanted) - {"size"}
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-4, err_msg=name)
        assert [2, *outputs[name]["shape"][1:]] == list(array.shape)


def test_a_file_of_it_is_described_and_names_its_recipe(run, tmp_path, capsys):
    workdir, config, _ = run
    argv = ["export", f"--workdir={workdir}", f"--out={tmp_path}"]
    assert cli.main([*argv, "--format=safetensors"]) == 0
    path = str(tmp_path / "model.safetensors")
    assert cli.main(["inspect", path]) == 0
    printed = capsys.readouterr().out
    assert "detector: an encoder of 2 blocks, width 16, no decoder, a det" in printed
    assert "a detection head of 5 classes, patches of 16 pixels" in printed
    assert "config.teacher.checkpoint of specific_det" in printed
    theirs = finished.recipe_of_file(path, {})
    assert theirs.task == config.task and theirs.model.adapter == config.model.adapter
    assert theirs.inference.detections == config.inference.detections
    for form, words in (("timm", "timm has no detectors"), ("onnx", "jax2onnx")):
        assert cli.main([*argv, f"--format={form}"]) == 2
        assert words in capsys.readouterr().err
    assert cli.main([*argv, "--format=torch", "--mean=0.5"]) == 2
    assert "--mean=0.5 is not for a detector" in capsys.readouterr().err
