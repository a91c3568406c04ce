# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch files: their weights are read, their pickles are not executed."""

import argparse
import os
import pickle

import jax
import numpy as np
import pytest
import torch

import runs
import tiny
from g2sd_jax import cli, stages
from g2sd_jax.models import vit
from g2sd_jax.weights import loading, torch_names


def saved(tmp_path, kept=lambda name: True):
    """A pre-training file as the authors' scripts write one."""
    config = runs.small("pretrain")
    variables = stages.build(config).init(jax.random.key(3), {})
    arrays = torch_names.to_torch(variables["params"], vit.grid(config.model))
    path = str(tmp_path / "mae_pretrain.pth")
    model = {k: torch.from_numpy(v.copy()) for k, v in arrays.items() if kept(k)}
    torch.save({"model": model, "args": argparse.Namespace(lr=1.0), "epoch": 7}, path)
    return path, arrays


def test_fine_tuning_starts_from_an_encoder_only_file(tmp_path):
    path, arrays = saved(
        tmp_path, lambda name: not name.startswith(("decoder", "mask"))
    )
    config = runs.small("finetune", init_from=path)
    stage = stages.build(config)
    variables = stage.warm_start(stage.init(jax.random.key(0), {}))
    found = torch_names.to_torch(variables["params"])
    for name in ("pos_embed", "blocks.1.mlp.fc2.weight", "patch_embed.proj.weight"):
        np.testing.assert_array_equal(found[name], arrays[name], err_msg=name)


def test_generic_distillation_refuses_an_encoder_only_file(tmp_path):
    path, _ = saved(tmp_path, lambda name: not name.startswith(("decoder", "mask")))
    config = runs.small("generic_distill")
    with config.unlocked():
        config.teacher.checkpoint = path
    with pytest.raises(ValueError, match=r"no decoder.*mae_pretrain_vit_base_full"):
        stages.build(config).frozen()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


WEIGHT = torch.zeros(2, 2)
HARMFUL = {  # case -> what the file holds, and how it is written
    "in place of weights": ({"model": Harmful()}, True),
    "among weights": ({"model": {"a": WEIGHT, "b": Harmful()}}, True),
    "beside weights": ({"model": {"a": WEIGHT}, "epoch": Harmful()}, True),
    "in the arguments": (
        {"model": {"a": WEIGHT}, "args": argparse.Namespace(lr=Harmful())},
        True,
    ),
    "as a key": ({Harmful(): WEIGHT}, True),
    "in the old format": ({"model": Harmful()}, False),
    "as a bare pickle": (pickle.dumps(Harmful()), None),
}


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "hub/pytorch_model.bin"])
@pytest.mark.parametrize("case", HARMFUL)
def test_a_pickle_is_not_executed(tmp_path, monkeypatch, capsys, case, name):
    monkeypatch.chdir(tmp_path)
    held, zipped = HARMFUL[case]
    os.mkdir("hub")
    with open("hub/config.json", "w") as file:
        file.write('{"model_type": "vit"}')
    if zipped is None:
        with open(name, "wb") as file:
            file.write(held)
    else:
        torch.save(held, name, _use_new_zipfile_serialization=zipped)
    path = name.removesuffix("/pytorch_model.bin")
    told = "is not a plain PyTorch weight file, and nothing in it was executed"
    with pytest.raises(ValueError, match=told):
        loading.read(path, "config.init_from")
    assert cli.main(["inspect", path]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error
    assert "weights_only" not in error  # PyTorch's advice is to execute it.
    assert "mkdir" in error or zipped is None
    assert not os.path.exists("executed")
    torch.load(name, weights_only=False) if zipped is not None else pickle.loads(held)
    assert os.path.exists("executed")  # So the file was a harmful one.


def test_damaged_files_are_told(tmp_path):
    path, _ = saved(tmp_path)
    with open(path, "rb") as file:
        whole = file.read()
    for content, told in (
        (whole[: len(whole) // 2], "cut short or damaged"),
        (whole[:20], "cut short or damaged"),
        (b"\x80\x02}", "cut short or damaged"),
        (b"", "is no .pth file: it is empty"),
        (b"<html>Quota exceeded</html>", "it is a web page"),
    ):
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match=told):
            loading.read(path, "config.init_from")


def test_a_published_full_file_starts_generic_distillation_anew(tmp_path):
    """A stage-1 student as the authors save one: with parts it never trained."""
    config = runs.small("generic_distill")
    stage = stages.build(config)
    shapes = jax.eval_shape(lambda key: stage.init(key, {}), jax.random.key(0))
    grid = vit.grid(config.model)
    arrays = torch_names.to_torch(
        tiny.noisy(jax.tree.map(zeros, shapes))["params"], grid
    )
    extra = {
        "decoder_norm.weight": (16,),
        "decoder_pred.bias": (48,),
        "encoderfeature_pred.fc1.weight": (24, 16),
    }
    held = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    held |= {name: torch.zeros(shape) for name, shape in extra.items()}
    path = str(tmp_path / "checkpoint-299.pth")
    torch.save({"model": held, "scaler": {}, "args": argparse.Namespace(lr=1.0)}, path)
    with config.unlocked():
        config.init_from = path
    found = torch_names.to_torch(stage.warm_start(shapes)["params"])
    for name in ("decoderfeature_pred.fc2.weight", "decoder_blocks.1.mlp.fc2.weight"):
        np.testing.assert_array_equal(found[name], arrays[name])


def zeros(leaf):
    return np.zeros(leaf.shape, leaf.dtype)


def test_a_file_without_weights_is_refused(tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"model": {"lr": 1.0}}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        loading.read(path, "config.init_from")
