# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The tutorial's lines for timm give the answer that ours give."""

import shutil

import numpy as np
import torch
from PIL import Image

import documents
import files
import finished_runs
import g2sd_jax
from g2sd_jax import cli


def test_timm_answers_as_we_do(tmp_path, monkeypatch):
    [code] = [
        block.text
        for block in documents.blocks("docs/tutorial.md", "python")
        if "import timm" in block.text
    ]
    monkeypatch.chdir(tmp_path)
    # All of the picture, which has the model's size: nothing is resized.
    described = dict(class_names=tuple("abcde"), eval_crop=1.0)
    made, *_ = finished_runs.workdir(tmp_path, "finetune", **described)
    student = "runs/mine/seed0/g2sd"
    (tmp_path / student).parent.mkdir(parents=True)
    shutil.move(made, student)
    assert cli.main(["export", f"--workdir={student}", "--format=timm"]) == 0
    pixels = files.pixels((16, 16))
    (tmp_path / "unlabelled").mkdir()
    Image.fromarray(pixels).save("unlabelled/1200.png")
    names = {}
    exec(code, names)
    probabilities = torch.softmax(names["logits"], dim=-1).numpy()
    ours = g2sd_jax.load(student)
    np.testing.assert_allclose(probabilities, ours.predict(pixels[None]), rtol=1e-3)
    assert tuple(names["names"]) == ours.class_names
