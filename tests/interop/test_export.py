# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Our students load in timm and transformers, strictly, and answer the same."""

import json

import jax
import numpy as np
import pytest
import timm
import torch
import transformers

import finished_runs
import tiny
from g2sd_jax import cli
from g2sd_jax.losses import masked
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import patches
from g2sd_jax.weights import graft, loading
from golden_files import agree

NAMES = ["ant", "bee", "cat", "dog", "eel"]
WIDE = dict(image_size=(16, 24))
STUDENTS = {  # case -> (stage, changes of config.model)
    "class token": ("finetune", dict(pool="cls", **WIDE)),
    "mean of patches": ("finetune", dict(pool="avg", image_size=(16, 16))),
    "both heads": ("specific_cls", dict(readout="mean", **WIDE)),
    "class head": ("specific_cls", dict(readout="cls")),
    "distillation head": ("specific_cls", dict(readout="dist")),
}


@pytest.fixture(scope="module", params=STUDENTS)
def student(request, tmp_path_factory):
    """A workdir, pictures, and the logits of the live model."""
    stage, changes = STUDENTS[request.param]
    folder = tmp_path_factory.mktemp("student")
    made = finished_runs.workdir(
        folder, stage, changes, class_names=NAMES, eval_crop=0.8
    )
    return (*made, *live(*made[1:]))


def live(config, variables):
    image = tiny.images(config, count=3)
    model = vit.classifier(config.model, 5, **layers.compute_options(config))
    logits = vit.read_logits(tiny.apply(model, variables, image), config.model.readout)
    return torch.from_numpy(image.transpose(0, 3, 1, 2)), np.asarray(logits)


def read(path):
    with open(path) as file:
        return file.read()


def exported(workdir, form):
    assert cli.main(["export", f"--workdir={workdir}", f"--format={form}"]) == 0
    return f"{workdir}/export/{form}"


@torch.no_grad()
def test_timm_gives_the_same_logits(student):
    workdir, config, _, image, want = student
    folder = exported(workdir, "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    agree(model(image), want, "logits", 1e-5)
    pictures = timm.data.resolve_model_data_config(model)
    assert tuple(pictures["mean"]) == config.data.mean
    assert tuple(pictures["std"]) == config.data.std
    assert tuple(pictures["input_size"]) == (3, *config.model.image_size)
    assert pictures["interpolation"] == "bicubic" and pictures["crop_pct"] == 0.8
    with open(f"{folder}/config.json") as file:
        assert json.load(file)["label_names"] == NAMES


@torch.no_grad()
def test_transformers_gives_the_same_logits(student):
    workdir, config, _, image, want = student
    folder = exported(workdir, "transformers")
    with open(f"{folder}/config.json") as file:
        family = getattr(transformers, json.load(file)["architectures"][0])
    model, found = family.from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys"))
    agree(model.eval()(image).logits, want, "logits", 1e-5)
    assert list(model.config.id2label.values()) == NAMES
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    height, width = config.model.image_size
    assert processor.size["shortest_edge"] == int(width / 0.8)
    picture = np.full((40, 50, 3), 128, np.uint8)
    ready = processor(picture, return_tensors="pt").pixel_values
    if height != width:
        # Which no processor cuts out: the model refuses what was not cut before.
        assert ready.shape == (1, 3, 40, 50)
        with pytest.raises(ValueError, match=r"(?i)size"):
            model(ready)
        assert "crop_share" in json.loads(read(f"{folder}/preprocessing.json"))
    else:
        assert ready.shape == (1, 3, height, width)
    centre = (128 / 255 - np.array(config.data.mean)) / config.data.std
    np.testing.assert_allclose(ready[0, :, 3, 3], centre, rtol=1e-5)


@pytest.mark.parametrize("form", ["timm", "transformers", "torch", "safetensors"])
def test_what_was_written_is_read_back(student, form):
    workdir, config, variables, _, want = student
    folder = exported(workdir, form)
    path = {"torch": "/model.pth", "safetensors": "/model.safetensors"}.get(form, "")
    if form == "transformers" and config.model.pool == "avg":
        with pytest.raises(ValueError, match="type 'beit'; of transformers' models"):
            loading.read(folder + path, "--workdir")
        return
    weights = loading.read(folder + path, "--workdir")
    shapes = jax.eval_shape(lambda: variables)
    got = graft.onto(shapes, weights, grid=vit.grid(config.model))
    if config.model.readout == "mean" or form in ("torch", "safetensors"):
        agree(live(config, got)[1], want, "logits", 1e-6)
    else:  # Whose heads were weighted for the libraries' average.
        model = vit.classifier(config.model, 5)
        image = tiny.images(config, count=3)
        outputs = tiny.apply(model, got, image)
        averaged = vit.read_logits(outputs, "mean" if model.dist_token else "cls")
        agree(averaged, want, "logits", 1e-6)
    assert tuple(weights.describe["mean"]) == config.data.mean
    assert weights.describe["class_names"] == NAMES


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return finished_runs.workdir(tmp_path_factory.mktemp("mae"), "pretrain")


@torch.no_grad()
@pytest.mark.parametrize("target", ["normalised", "raw"])
def test_transformers_gives_the_same_reconstruction_loss(tmp_path, rng, target):
    model = dict(image_size=(32, 32))
    workdir, config, variables = finished_runs.workdir(
        tmp_path, "pretrain", model, target=target
    )
    folder = exported(workdir, "transformers")
    theirs, found = transformers.ViTMAEForPreTraining.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys"))
    image = tiny.images(config, count=3)
    noise = rng.random((3, 64), np.float32)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2))
    out = theirs.eval()(pixels, noise=torch.from_numpy(noise))

    masking = patches.mask(noise, theirs.config.mask_ratio)
    ours = mae.autoencoder(config.model)
    mine = tiny.apply(ours, variables, image, masking)
    agree(mine.pixels, out.logits, "pixels", 1e-5)
    wanted = patches.patchify(image, ours.patch)
    if target == "normalised":
        wanted = masked.normalise_patches(wanted)
    loss = masked.masked_pixel_loss(mine.pixels, wanted, masking.removed)
    np.testing.assert_allclose(loss, out.loss, rtol=1e-5)


@torch.no_grad()
def test_an_autoencoder_without_pixels_gives_its_encoder(tmp_path):
    workdir, config, variables = finished_runs.workdir(tmp_path, "generic_distill")
    image = tiny.images(config, count=2)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2))
    encoder = mae.encoder(mae.autoencoder(config.model))
    want = jax.jit(lambda v: mae.features(encoder, mae.trim(v, encoder), image))(
        variables
    )
    folder = exported(workdir, "transformers")
    theirs, found = transformers.ViTMAEModel.from_pretrained(
        folder, output_loading_info=True, mask_ratio=0.0
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys"))
    tokens = theirs.eval()(pixels).last_hidden_state
    agree(tokens[:, 1:].mean(1), want, "features", 1e-5)
    folder = exported(workdir, "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    tokens = model.forward_features(pixels)
    agree(tokens[:, 1:].mean(1), want, "features", 1e-5)


@torch.no_grad()
def test_another_epsilon_is_exported(tmp_path, capsys):
    model = dict(pool="cls", norm_eps=0.01)
    workdir, config, variables = finished_runs.workdir(tmp_path, "finetune", model)
    image, want = live(config, variables)
    folder = exported(workdir, "transformers")
    theirs = transformers.ViTForImageClassification.from_pretrained(folder)
    agree(theirs.eval()(image).logits, want, "logits", 1e-5)
    weights = loading.read(folder, "--workdir")
    assert weights.describe["model"]["norm_eps"] == 0.01
    assert cli.main(["export", f"--workdir={workdir}", "--format=timm"]) == 2
    assert "its LayerNorms add 0.01" in capsys.readouterr().err


@torch.no_grad()
def test_timm_gets_a_hidden_width_that_it_truncates(tmp_path):
    model = dict(pool="cls", width=39, heads=3, mlp_ratio=4.615, size="custom")
    workdir, config, variables = finished_runs.workdir(tmp_path, "finetune", model)
    image, want = live(config, variables)
    theirs = timm.create_model(
        f"local-dir:{exported(workdir, 'timm')}", pretrained=True
    )
    agree(theirs.eval()(image), want, "logits", 1e-5)


def test_what_no_library_computes_is_refused(tmp_path, capsys):
    model = dict(pool="avg", dist_token=True)
    workdir, *_ = finished_runs.workdir(tmp_path, "specific_cls", model)
    for form in ("timm", "transformers"):
        assert cli.main(["export", f"--workdir={workdir}", f"--format={form}"]) == 2
        told = capsys.readouterr().err
        assert f"no model of {form} does both" in told and "stablehlo" in told
