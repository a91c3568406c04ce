# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A file of a run answers as the run: its description says how pictures are read."""

import json

import numpy as np
import pytest
import safetensors.numpy

import files
import finished_runs
from g2sd_jax import cli, finished
from g2sd_jax.data import source
from g2sd_jax.kinds import vit
from g2sd_jax.tools import evaluate
from g2sd_jax.weights import loading

COUNT = 100  # Pictures that are asked about.
SHAPE = dict(image_size=(24, 16), patch=8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    per_class = COUNT // 4
    return files.write(folder, files.photographs(per_class, classes="ab"))


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """The workdir of a classifier of those pictures, which sees 80 % of each."""
    data = dict(source="folder", path=str(pictures), eval_crop=0.8, classes=2)
    folder, names = tmp_path_factory.mktemp("described"), ("a", "b")
    path, config, _ = finished_runs.workdir(
        folder, "finetune", SHAPE, data, class_names=names
    )
    assert source.describe(config) == {"source": "folder", "eval_crop": 0.8}
    return path


def export(run, folder, form):
    argv = ["export", f"--workdir={run}", f"--format={form}", f"--out={folder}"]
    assert cli.main(argv) == 0
    names = {"safetensors": "model.safetensors", "torch": "model.pth"}
    return str(folder / names[form]) if form in names else str(folder)


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_every_picture_gets_the_answer_of_the_run(run, pictures, tmp_path, form):
    path = export(run, tmp_path / form, form)
    paths = sorted(str(path) for path in pictures.rglob("*.jpg"))
    assert len(paths) == COUNT
    mine = vit.predict(finished.choose(run, "", "", {}), paths)
    theirs = vit.predict(finished.choose("", path, "", {}), paths)
    for answer, other in zip(mine, theirs, strict=True):
        assert answer["class"] == other["class"]
        probabilities = [list(a["probabilities"].values()) for a in (answer, other)]
        np.testing.assert_allclose(*probabilities, rtol=1e-4)


def test_what_is_judged_otherwise_is_told(run, pictures, tmp_path, capsys):
    path = export(run, tmp_path, "safetensors")
    others = {"data.source": "arrays", "data.path": str(pictures)}
    capsys.readouterr()
    finished.choose("", path, "", others)
    assert "was judged with config.data.source='folder', not" in capsys.readouterr().out


def changed(path, **described):
    """The file with another description."""
    weights = loading.read(path, "--checkpoint")
    describe = {**weights.describe, **described}
    arrays = {k: np.ascontiguousarray(v) for k, v in weights.arrays.items()}
    meta = {"g2sd_jax": json.dumps(describe)}
    safetensors.numpy.save_file(arrays, path, metadata=meta)
    return path


def test_heads_epsilon_and_names_are_compared(run, tmp_path):
    path = export(run, tmp_path, "safetensors")
    with pytest.raises(ValueError, match=r"config\.model has 4 heads, but .* with 2"):
        finished.choose(run, path, "", {"model.heads": 4})
    with pytest.raises(ValueError, match=r"config\.model\.norm_eps=1e-05, but the"):
        finished.choose(run, path, "", {"model.norm_eps": 1e-5})
    model = finished.choose("", changed(path, class_names=["b", "a"]), "", {})
    with model.config.unlocked():
        model.config.data.path = finished.config_of(run).data.path
    with pytest.raises(ValueError, match=r"its label 0 is 'b', that of the data 'a'"):
        evaluate.evaluate(model)
