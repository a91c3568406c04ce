# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The table of kinds: a kind that only a test knows is served by every verb."""

import json
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import finished_runs
import runs
from g2sd_jax import cli, finished, kinds
from g2sd_jax.exports import weight_files
from g2sd_jax.models import vit
from g2sd_jax.pages import class_tables
from g2sd_jax.stages import finetune
from g2sd_jax.weights import graft, loading, parts, torch_names

HEAD = "box_head.cls"


def boxes_of(model, images, out):
    """An answer that needs two arrays of the evaluator: boxes and scores."""
    evaluator = model.stage.evaluators["eval"]
    rows = []
    for batch, chosen in model.batches(images):
        outputs = jax.device_get(jax.jit(evaluator.predict)(model.variables, {}, batch))
        for image, boxes, scores in zip(chosen, *outputs.values(), strict=False):
            row = dict(image=image, boxes=boxes.tolist(), scores=scores.tolist())
            rows.append(row)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(rows, file)
    return [kinds.Answer(row["image"], f"{len(row['boxes'])} boxes") for row in rows]


def prepare(weights, options):
    numbers = dict(mean=options.mean, batch=options.config() and options.config().batch)
    return types.SimpleNamespace(arrays=weights.arrays, preprocessing=numbers)


def write_boxes(model, folder):
    return [weight_files.write_preprocessing(model, folder, {})]


KIND = kinds.Kind(
    recognises=lambda arrays: f"{HEAD}.weight" in arrays,
    holds=lambda weights: [f"boxer: {weights.summary()}"],
    serves=lambda weights: ["serves: this test"],
    module=lambda model: vit.Vit(8, 1, 1, 4, (8, 8)),
    answers=boxes_of,
    prepare=prepare,
    formats={"boxes": write_boxes},
    refusals={"timm": "timm draws no boxes"},
    recipe="finetune",
    settings=lambda weights: dict(mesh=dict(fsdp=len(weights.arrays))),
    pictures=(kinds.Pictures("{name} boxed", "boxes/*.png", "boxes", "{file}!", 2),),
)


@pytest.fixture
def boxer(monkeypatch):
    module = types.ModuleType("boxer")
    module.KIND = KIND
    monkeypatch.setitem(sys.modules, "boxer", module)
    monkeypatch.setitem(kinds.KINDS, "boxer", "boxer")
    monkeypatch.setitem(parts.HEADS, HEAD, "a box head")


@pytest.fixture
def workdir(boxer, monkeypatch, tmp_path):
    """A run that learns boxes: its evaluator answers with two arrays."""
    build = finetune.build

    def build_boxer(config):
        stage = build(config)
        evaluator = stage.evaluators["eval"]

        def predict(variables, frozen, batch):
            logits = evaluator.predict(variables, frozen, batch)["logits"]
            return {"boxes": jnp.stack([logits] * 4, axis=-1), "scores": logits}

        return stage._replace(
            describe={**stage.describe, "kind": "boxer"},
            evaluators={"eval": evaluator._replace(predict=predict)},
        )

    monkeypatch.setattr(finetune, "build", build_boxer)
    return finished_runs.workdir(tmp_path, "finetune")[0]


@pytest.fixture
def file(tmp_path):
    path = str(tmp_path / "boxes.safetensors")
    safetensors.numpy.save_file({f"{HEAD}.weight": np.zeros((7, 4), np.float32)}, path)
    return path


def test_inspect_recognises_it(boxer, file, capsys):
    assert cli.main(["inspect", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = "an encoder of 0 blocks, width ?, no decoder, a box head of 7 classes"
    assert lines[0] == f"{file}: 28 numbers in 1 arrays"
    assert lines[-2:] == [f"boxer: {head}", "serves: this test"]


def test_what_no_kind_recognises_is_refused(file, capsys):
    weights = loading.read(file, "--workdir")
    with pytest.raises(ValueError, match="no vision transformer that is known here"):
        kinds.name_of(weights)
    assert cli.main(["inspect", file]) == 2
    assert f"1 entries such as {HEAD}.weight" in capsys.readouterr().err


def test_inspect_describes_a_run_of_it(workdir, capsys):
    assert cli.main(["inspect", workdir]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "kind: boxer" in lines and lines[-1] == "serves: this test"


def test_a_loading_error_names_its_head(boxer, file):
    weights = loading.read(file, "config.init_from")
    with pytest.raises(ValueError, match="a box head of 7 classes; check"):
        graft.onto({"params": {"a": np.zeros(1)}}, weights, grid=(1, 1))


def test_export_writes_its_formats_alone(workdir, capsys):
    export = ["export", f"--workdir={workdir}"]
    assert cli.main([*export, "--format=boxes", "--mean=0.5"]) == 0
    with open(f"{workdir}/export/boxes/preprocessing.json") as written:
        assert json.load(written) == dict(mean="0.5", batch=16, program={})
    for name, reason in (
        ("timm", "--format=timm takes no boxer: timm draws no boxes."),
        ("onnx", "--format='onnx' is not known; known: boxes"),
    ):
        assert cli.main([*export, f"--format={name}"]) == 2
        assert reason in capsys.readouterr().err


def test_predict_tells_two_arrays(workdir, tmp_path, capsys):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (16, 16), (40 * i, 90, 200)).save(path)
    out = tmp_path / "boxes.json"
    assert cli.main(["predict", *paths, f"--workdir={workdir}", f"--out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [f"{path}: 5 boxes" for path in paths] == lines[-3:]
    rows = json.loads(out.read_text())
    assert [row["image"] for row in rows] == paths
    for row in rows:
        assert np.shape(row["boxes"]) == (5, 4)
        assert np.array(row["boxes"])[:, 0].tolist() == row["scores"]
    assert rows[0]["scores"] != rows[1]["scores"]


def test_pictures_that_it_leaves_out_are_told(workdir, tmp_path, capsys, monkeypatch):
    answers = lambda model, images, out: [kinds.Answer(images[0], "seen")]
    monkeypatch.setattr(sys.modules["boxer"], "KIND", KIND._replace(answers=answers))
    assert cli.main(["predict", "a.png", "b.png", f"--workdir={workdir}"]) == 2
    captured = capsys.readouterr()
    assert "a.png: seen" in captured.out
    assert "1 of 2 pictures could not be read: b.png" in captured.err


def test_a_run_of_it_gives_its_module_and_its_pictures(workdir):
    model = finished.from_run(workdir)
    assert model.kind == KIND and model.model().width == 8
    assert class_tables.drawn("run", workdir) == []
    os.mkdir(f"{workdir}/boxes")
    for i in range(3):
        Image.new("RGB", (2, 2)).save(f"{workdir}/boxes/{i}.png")
    [section] = class_tables.drawn("run", workdir)
    assert section.title == "run boxed"
    sources = [block["source"] for block in section.blocks]
    assert sources == ["boxes/0.png!", "boxes/1.png!"]


def test_a_file_of_it_names_its_recipe(workdir, tmp_path):
    weights = loading.read(workdir, "--workdir")
    arrays = {key: np.ascontiguousarray(x) for key, x in weights.arrays.items()}
    path = str(tmp_path / "described.safetensors")
    meta = {"g2sd_jax": json.dumps(dict(weights.describe))}
    safetensors.numpy.save_file(arrays, path, metadata=meta)
    config = finished.recipe_of_file(path, {})
    assert config.stage == "finetune" and config.model.width == 16
    assert config.mesh.fsdp == len(arrays)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_kind_writes_a_format_or_says_why_not(name):
    kind = kinds.by_name(name)
    assert isinstance(kind, kinds.Kind)
    assert not kind.formats.keys() & kind.refusals.keys()
    assert set(kinds.formats()) >= kind.refusals.keys()


@pytest.mark.parametrize("name", [*runs.STAGES, *runs.SEGMENTATION, *runs.DETECTION])
def test_weights_of_every_stage_are_recognised(name):
    config, stage, variables = finished_runs.made(name)
    described = stage.describe["kind"]
    arrays = torch_names.to_torch(variables, vit.grid(config.model))
    weights = loading.Weights("a file", arrays, {})
    assert kinds.name_of(weights) == described
    named = loading.Weights("a run", {}, {"kind": described})
    assert kinds.name_of(named) == described
