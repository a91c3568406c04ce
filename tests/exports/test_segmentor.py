# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Exported segmentors answer as predict does, by the recipe in docs/weights.md."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import alone
import documents
import finished_runs
import finished_runs as made
import runs
from g2sd_jax import cli, finished, palette
from g2sd_jax.data.memory import fake
from g2sd_jax.evaluators import sliding
from g2sd_jax.models import vit
from g2sd_jax.weights import graft, loading
from golden_files import agree

NAMES = ["sky", "road", "car", "tree", "pole"]
HOST = (
    alone.BEGINNING.replace("image = np.load(pictures)", "")
    + """
import re
from jax import export

with open(f"{folder}/model.stablehlo", "rb") as file:
    program = export.deserialize(file.read())
exec(open("host.py").read())
held = np.load(pictures)
np.savez(answers, **{name: segment(held[name]) for name in held})
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir, its config and its variables."""
    folder = tmp_path_factory.mktemp("segmentor")
    return made.workdir(folder, runs.SEGMENTATION[0], class_names=NAMES)


def exported(workdir, form, *flags):
    assert cli.main(["export", f"--workdir={workdir}", f"--format={form}", *flags]) == 0
    with open(f"{workdir}/export/{form}/preprocessing.json") as file:
        return f"{workdir}/export/{form}", json.load(file)


@pytest.mark.parametrize(
    "inference",
    [{}, {"mode": "whole"}, {"scales": [0.5, 1.3], "flip": True}],
    ids=["slide", "whole", "looks"],
)
def test_the_host_cuts_and_merges_as_evaluation_does(inference, run, tmp_path):
    workdir, config, variables = run
    if inference:
        workdir = shutil.copytree(workdir, tmp_path / "run")
        changed = json.loads((workdir / "config.json").read_text())
        changed["inference"] |= inference
        (workdir / "config.json").write_text(json.dumps(changed))
        config = finished.config_of(str(workdir))
    folder, told = exported(workdir, "stablehlo")
    blocks = documents.blocks("docs/weights.md", "python")
    [code] = [block.text for block in blocks if block.text.startswith("import json")]
    (tmp_path / "host.py").write_text(code)
    (tmp_path / "program.py").write_text(HOST)
    held_out = fake.load(config, config.data.eval_split, ("label_map",))
    images = [held_out.original(i)["image"] for i in range(3)]
    images.append(images[0][:15])  # Less high than a window, once it is scaled.
    np.savez(tmp_path / "in.npz", **{f"{i}": image for i, image in enumerate(images)})
    command = [sys.executable, "program.py", folder, "in.npz", "out.npz"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=""),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "out.npz")

    evaluator = finished.from_run(str(workdir)).stage.evaluators["eval"]
    predict, plan = jax.jit(evaluator.predict), sliding.plan(config)
    seen, count = set(), []
    for i, image in enumerate(images):
        scene = sliding.Scene({"image": image}, plan)
        count.append(len(scene.windows))
        for at, window in scene.windows.items():
            batch = sliding.padded([window], 1, plan, 3)
            scene.add(at, np.asarray(predict(variables, {}, batch)["logits"][0]))
        answer = scene.answer()
        assert answer.shape == got[f"{i}"].shape
        assert (answer == got[f"{i}"]).mean() > 0.999, i
        seen |= set(np.unique(answer))
    assert len(seen) > 2 and (max(count) > 1) == (plan.mode == "slide")  # Else easy.
    assert told.items() >= inference.items()
    assert told["class_names"] == NAMES and told["window"] == [64, 64]
    assert told["palette"] == palette.colours()[:5].tolist()
    assert (told["fit"], told["stride"]) == ([64, 256], [43, 43])
    wanted = dict(name="logits", shape=["batch", 16, 16, 5], dtype="float32")
    assert wanted.items() <= told["program"]["output"].items()


def test_a_file_of_it_gives_the_same_logits_and_can_be_exported(run, tmp_path):
    workdir, config, variables = run
    path = f"{exported(workdir, 'safetensors')[0]}/model.safetensors"
    weights = loading.read(path, "--workdir")
    shapes = jax.eval_shape(lambda: variables)
    got = graft.onto(shapes, weights, grid=vit.grid(config.model))
    agree(
        finished_runs.segmentor_logits(config, got),
        finished_runs.segmentor_logits(config, variables),
        "logits",
        1e-6,
    )
    assert weights.describe["class_names"] == NAMES
    argv = ["export", f"--workdir={path}", "--format=stablehlo", f"--out={tmp_path}"]
    assert cli.main(argv) == 0
    assert (tmp_path / "model.stablehlo").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["file", "workdir"])
def test_inspect_says_what_it_holds(kind, run, tmp_path, capsys):
    path = f"{exported(run[0], 'safetensors')[0]}/model.safetensors"
    assert cli.main(["inspect", path if kind == "file" else run[0]]) == 0
    told = capsys.readouterr().out
    assert "segmentor: an encoder of 2 blocks, width 16, no decoder, a segment" in told
    assert "head of 5 classes, patches of 16 pixels, 3 channels, 2 heads\n" in told
    assert "classes: sky, road, car, tree, pole\n" in told
    assert "specific_seg; config.teacher.checkpoint of specific_seg" in told
    arrays = safetensors.numpy.load_file(path)
    both = {
        f"{who}.{n}": a for n, a in arrays.items() for who in ("student", "teacher")
    }
    safetensors.numpy.save_file(both, tmp_path / "both.safetensors")
    assert cli.main(["inspect", str(tmp_path / "both.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "student: an encoder of 2" in told and "teacher: an encoder of 2" in told


def test_what_can_not_be_written_is_told(run, tmp_path, capsys):
    workdir, *_ = run
    foreign = str(tmp_path / "foreign.safetensors")
    arrays = loading.read(workdir, "--workdir").arrays
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, foreign)
    for path, flags, told in (
        (workdir, ["--format=timm"], "--format=timm takes no segmentor: timm has no"),
        (workdir, ["--format=transformers"], "has no bias of keys and no sliding"),
        (workdir, ["--format=onnx"], "does not take the loop over the blocks"),
        (workdir, ["--format=torch", "--mean=0.5"], "--mean=0.5 is not for a segment"),
        (foreign, ["--format=stablehlo"], "does not say which blocks are tapped"),
    ):
        assert cli.main(["export", f"--workdir={path}", *flags]) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1, err
    assert not os.path.exists(f"{workdir}/export/timm")
