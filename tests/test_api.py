# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The Python interface: what the verbs do, without a command line."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import files
import g2sd_jax
from g2sd_jax import finished, kinds

MODEL = dict(image_size=16, patch=8, width=16, depth=1, heads=2)
SETTINGS = dict(
    model=MODEL,
    batch=8,
    total_steps=1,
    first_batch_images=0,
    optim=dict(warmup_epochs=0.0),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    contents = files.photographs(per_class=4, classes="abc")
    return files.write(tmp_path_factory.mktemp("pictures"), contents)


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    path = tmp_path_factory.mktemp("runs") / "mine"
    data = dict(source="folder", path=str(pictures), train_examples=None, classes=None)
    metrics = g2sd_jax.train("finetune:smoke", path, data=data, **SETTINGS)
    assert metrics["step"] == 1 and 0 <= metrics["eval/top1"] <= 100
    return path


def test_a_run_answers_as_its_verbs_do(run, pictures):
    model = g2sd_jax.load(run)
    paths = sorted(map(str, pictures.glob("val/*/*.jpg")))[:5]
    probabilities = model.predict(paths)
    assert probabilities.shape == (5, 3) and model.class_names == ("a", "b", "c")
    rows = kinds.by_name("vit").answers(finished.from_run(str(run)), paths, "")
    for row, theirs in zip(probabilities, rows, strict=True):
        best = int(row.argmax())
        expected = f"{model.class_names[best]} {100 * row[best]:.1f} %"
        assert theirs.sentence.startswith(expected)
    image = model.preprocess(paths)
    assert image.shape == (5, 16, 16, 3) and image.dtype == np.float32
    tokens = model.tokens(image)
    assert tokens.shape == (5, 1 + 4, 16) and model.embed(paths).shape == (5, 16)


def test_arrays_are_pictures_too(run):
    model = g2sd_jax.load(run)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(model.predict(pixels).sum(axis=-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="takes paths, or uint8"):
        model.predict(pixels.astype(np.float32))


def test_another_size_and_a_weight_file(run, tmp_path):
    model = g2sd_jax.load(run, image_size=(24, 16))
    assert model.tokens(np.zeros((1, 24, 16, 3))).shape == (1, 1 + 6, 16)
    arrays = {"pos_embed": np.zeros((1, 5, 16), np.float32)}
    path = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        g2sd_jax.load(path)


def test_what_weights_leave_open_is_asked_for(run, tmp_path):
    from g2sd_jax.weights import loading

    arrays = dict(loading.read(str(run), "path").arrays)
    path = tmp_path / "bare.safetensors"
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match=r"heads=… of its 16 channels"):
        g2sd_jax.load(path)
    assert g2sd_jax.load(path, heads=2).module.classes == 3
    with pytest.raises(ValueError, match="colour: no options of an encoder"):
        g2sd_jax.load(path, heads=2, colour="red")


def test_mistakes_are_exceptions(tmp_path):
    with pytest.raises(ValueError, match=r"run it with g2sd_jax\.chain"):
        g2sd_jax.train("chains/digits", tmp_path)
    with pytest.raises(ValueError, match="run it with g2sd train"):
        g2sd_jax.chain("finetune:smoke", tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        g2sd_jax.trian  # noqa: B018


def test_the_interface_needs_no_tensorflow():
    program = (
        "import sys, g2sd_jax; assert 'jax' not in sys.modules; "
        "functions = g2sd_jax.train, g2sd_jax.chain, g2sd_jax.load; "
        "assert all(map(callable, functions)); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
