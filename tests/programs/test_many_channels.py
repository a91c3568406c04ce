# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""An autoencoder of pictures that are no photographs: any channels, any sides."""

import json

import numpy as np
import pytest

import finished_runs
import slow
from g2sd_jax import cli

SIDES = (16, 32)


@pytest.fixture(params=slow.parameters([13, 2, 4], quick=[13]))
def run(request, tmp_path):
    """(workdir, channels) of an autoencoder, its pictures in an .npz."""
    channels = request.param
    shape = (10, *SIDES, channels)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.savez(tmp_path / "set.npz", train_image=image, val_image=image)
    data = dict(source="arrays", path=str(tmp_path / "set.npz"), classes=0)
    data |= dict(mean=(0.5,) * channels, std=(0.25,) * channels, train_examples=10)
    model = dict(channels=channels, image_size=SIDES)
    return finished_runs.workdir(tmp_path, "pretrain", model, data)[0], channels


def test_every_verb_answers(run, tmp_path, capsys):
    workdir, channels = run
    ask = lambda verb, *rest: cli.main([verb, *rest])
    features = tmp_path / "val.npz"
    assert ask("embed", f"--workdir={workdir}", f"--out={features}") == 0
    with np.load(features) as stored:
        assert stored["features"].shape == (10, 16)
    assert ask("report", workdir) == 0
    out = [f"--out={tmp_path / 'guess.png'}", str(tmp_path / "set.npz")]
    capsys.readouterr()
    assert ask("reconstruct", f"--workdir={workdir}", *out) == 2
    error = capsys.readouterr().err
    assert f"channels={channels}: picture files are read with 1 (grey) or 3" in error
    assert error.count("\n") == 1
    for form in ("transformers", "timm", "safetensors"):
        assert ask("export", f"--workdir={workdir}", f"--format={form}") == 0
    read = lambda path: json.loads((tmp_path / "run" / "export" / path).read_text())
    theirs = read("transformers/config.json")
    assert (theirs["image_size"], theirs["num_channels"]) == ([*SIDES], channels)
    assert read("transformers/preprocessor_config.json")["do_resize"] is False
    assert read("transformers/preprocessing.json")["image_size"] == [*SIDES]
    assert read("timm/config.json")["pretrained_cfg"]["input_size"] == [
        channels,
        *SIDES,
    ]
    assert read("safetensors/preprocessing.json")["judged_with"] == {"source": "arrays"}
