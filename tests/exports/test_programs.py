# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Exported programs answer as the live model does, where this package is missing."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

import alone
import finished_runs
import runs
import tiny
from g2sd_jax import cli, kinds, loop
from g2sd_jax.data import source
from g2sd_jax.exports import plain, programs
from g2sd_jax.kinds import encoders
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import augment
from g2sd_jax.weights import graft, loading, torch_names
from golden_files import agree

ONNX = os.environ.get("G2SD_ONNX_PYTHON", "")

STABLEHLO = """
from jax import export

with open(f"{folder}/model.stablehlo", "rb") as file:
    program = export.deserialize(file.read())
assert program.platforms == ("cpu", "tpu", "cuda")
np.save(answers, np.concatenate([program.call(image[:1]), program.call(image[1:])]))
"""
ONNXRUNTIME = """
import onnx
import onnxruntime

made = onnx.load(f"{folder}/model.onnx")
onnx.checker.check_model(made)
assert not [node for node in made.graph.node if node.op_type == "Einsum"]  # Slow.
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
run = lambda image: session.run(["logits"], {"image": image})[0]
assert "mean" in session.get_modelmeta().custom_metadata_map["preprocessing"]
np.save(answers, np.concatenate([run(image[:1]), run(image[1:])]))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained student of digits, the pictures held out, and its live answers."""
    workdir = str(tmp_path_factory.mktemp("digits") / "run")
    config = runs.small("finetune")
    with config.unlocked():
        config.data.update(source="digits", train_examples=1198, classes=10)
        config.data.update(mean=(0.305,), std=(0.319,))
        config.model.channels = 1
        config.update(batch=64, total_steps=200, eval_epochs=1000.0)
        config.checkpoint.every = 200
        config.augment.update(crop_area=(), flip=0.0, erase=0.0, mixup=0.0, cutmix=0.0)
        config.augment.smoothing = 0.0
        config.optim.update(lr=5e-3, layer_decay=1.0)
    scores = loop.run(config, workdir)
    pictures = source.load(config, "val").fetch(np.arange(599))
    variables = restored(workdir, config)
    spec = augment.spec(config, train=False)
    model = vit.classifier(config.model, 10, **layers.compute_options(config))

    @jax.jit
    def live(image):
        ready = augment.prepare({"image": image}, {}, spec)["image"]
        return model.apply(variables, ready)

    logits = np.asarray(live(pictures["image"]).logits)
    top1 = 100 * (logits.argmax(1) == pictures["label"]).mean()
    np.testing.assert_allclose(top1, scores["eval/top1"], atol=1e-4)
    assert top1 > 50  # Else agreeing would say little.
    return workdir, pictures["image"], logits


def restored(workdir, config):
    weights = loading.read(workdir, "--workdir")
    model = vit.classifier(config.model, config.data.classes)
    shapes = jax.eval_shape(lambda key: vit.init(model, key), jax.random.key(0))
    return graft.onto(shapes, weights, grid=vit.grid(config.model))


def answers(python, program, folder, image, tmp_path):
    """What a program says in a process of its own, in an empty folder."""
    np.save(tmp_path / "pictures.npy", image)
    (tmp_path / "program.py").write_text(alone.BEGINNING + program)
    given = [folder, tmp_path / "pictures.npy", tmp_path / "answers.npy"]
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH="")
    done = subprocess.run(
        [python, "program.py", *map(str, given)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "answers.npy")


def same_answers(got, logits):
    np.testing.assert_array_equal(got.argmax(1), logits.argmax(1))
    agree(got, logits, "logits", 1e-5)


@pytest.mark.slow
def test_stablehlo_answers_the_same(digits, tmp_path):
    workdir, image, logits = digits
    assert cli.main(["export", f"--workdir={workdir}", "--format=stablehlo"]) == 0
    folder = f"{workdir}/export/stablehlo"
    got = answers(sys.executable, STABLEHLO, folder, image, tmp_path)
    same_answers(got, logits)
    with open(f"{folder}/preprocessing.json") as file:
        told = json.load(file)
    assert told["class_names"] == [str(digit) for digit in range(10)]
    assert told["crop_share"] == 1.0
    assert told["mean"] == [0.305] and told["image_size"] == [16, 16]
    wanted = dict(name="image", shape=["batch", 16, 16, 1], dtype="uint8")
    assert wanted.items() <= told["program"]["input"].items()


@pytest.mark.skipif(
    not ONNX,
    reason="no environment with jax2onnx, which pins an old Orbax: bash launch/test.sh "
    "--onnx makes one, or name its python in $G2SD_ONNX_PYTHON",
)
def test_onnx_answers_the_same(digits, tmp_path):
    workdir, image, logits = digits
    command = [ONNX, "-m", "g2sd_jax.cli", "export", f"--workdir={workdir}"]
    environment = dict(os.environ, PYTHONPATH=str(alone.ROOT), XLA_FLAGS="")
    done = subprocess.run(
        [*command, "--format=onnx"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    got = answers(ONNX, ONNXRUNTIME, f"{workdir}/export/onnx", image, tmp_path)
    same_answers(got, logits)


def test_onnx_without_its_converter_says_how(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)  # Importing it now fails.
    path, *_ = finished_runs.workdir(tmp_path, "finetune")
    assert cli.main(["export", f"--workdir={path}", "--format=onnx"]) == 2
    assert not os.path.exists(os.path.join(path, "export"))  # No empty folder stays.
    told = capsys.readouterr().err
    assert "environment of its own" in told and "pip install '.[onnx]'" in told


def test_onnx_says_what_is_too_large(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", sys)  # It is not reached.
    monkeypatch.setattr(programs, "LARGEST", 1000)
    path, *_ = finished_runs.workdir(tmp_path, "finetune")
    assert cli.main(["export", f"--workdir={path}", "--format=onnx"]) == 2
    assert "and an ONNX file at most 2; use --format" in capsys.readouterr().err


CASES = {
    "class token": ("finetune", dict(pool="cls", image_size=(16, 24))),
    "mean of patches": ("finetune", dict(pool="avg")),
    "both heads": ("specific_cls", dict(readout="mean")),
    "distillation head": ("specific_cls", dict(readout="dist")),
    "mean and both heads": ("specific_cls", dict(pool="avg", readout="mean")),
}


@pytest.mark.parametrize("case", CASES)
def test_programs_answer_as_the_model(case, rng):
    name, changes = CASES[case]
    config, _, variables = finished_runs.made(name, changes)
    model = vit.classifier(config.model, 5)
    image = rng.integers(0, 256, (3, *config.model.image_size, 3), np.uint8)
    spec = augment.spec(config, train=False)
    ready = augment.prepare({"image": image}, {}, spec)["image"]
    want = vit.read_logits(tiny.apply(model, variables, ready), config.model.readout)
    for run in forms(torch_arrays(variables), config, config.model.readout):
        agree(jax.jit(run)(image), want, case, 1e-5)


@pytest.mark.parametrize("name", ["pretrain", "generic_distill"])
def test_programs_encode_as_an_autoencoder(name, rng):
    config, _, variables = finished_runs.made(name)
    image = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    arrays = torch_arrays(variables, vit.grid(config.model))
    spec = augment.spec(config, train=False)
    ready = augment.prepare({"image": image}, {}, spec)["image"]
    encoder = mae.encoder(mae.autoencoder(config.model))
    trimmed = mae.trim(variables, encoder)
    see = lambda v: encoder.apply(v, ready, mae.no_masking(encoder, len(ready))).latent
    want = jax.jit(see)(trimmed)
    for run in forms(arrays, config, "cls"):
        agree(jax.jit(run)(image), want, "tokens", 1e-5)


def torch_arrays(variables, grid=None):
    return torch_names.to_torch(variables["params"], grid)


def forms(arrays, config, readout):
    """What StableHLO and ONNX are made of."""
    model = dict(heads=config.model.heads)
    describe = dict(model=model, grid=vit.grid(config.model))
    weights = loading.Weights("a run", arrays, describe)
    numbers = [",".join(map(str, config.data[name])) for name in ("mean", "std")]
    options = kinds.ExportOptions(None, readout, *numbers)
    made = encoders.prepare(weights, options)
    pixels = dict(mean=config.data.mean, std=config.data.std)
    yield programs.network(made)
    yield plain.program(arrays, made.shape, readout=readout, **pixels)


def test_what_can_not_be_exported_is_refused(tmp_path, capsys):
    path, *_ = finished_runs.workdir(tmp_path, "finetune")
    for flags, told in (
        (["--format=tflite"], "--format='tflite' is not known"),
        (["--format=timm", "--readout=mean"], "needs a distillation head"),
        (["--format=timm", "--mean=a"], "is not a list of numbers"),
        (["--format=timm", "--std=1,2"], "has to be 1 or 3 numbers"),
    ):
        assert cli.main(["export", f"--workdir={path}", *flags]) == 2
        assert told in capsys.readouterr().err
    assert not os.path.exists(f"{path}/export")


def test_symbolic_batch_and_every_platform(tmp_path):
    path, *_ = finished_runs.workdir(tmp_path, "specific_cls")
    out = str(tmp_path / "out")
    flags = [f"--workdir={path}", "--format=stablehlo", f"--out={out}"]
    assert cli.main(["export", *flags]) == 0
    with open(f"{out}/model.stablehlo", "rb") as file:
        made = export.deserialize(file.read())
    assert [str(side) for side in made.in_avals[0].shape] == ["batch", "16", "16", "3"]
    assert {"cpu", "tpu", "cuda"} == set(made.platforms)
