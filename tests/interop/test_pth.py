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
    variables = stages.build(config).init(jax.random.key(3))
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
    variables = stage.warm_start(stage.init(jax.random.key(0)))
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
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
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


def state(tmp_path):
    """A path, and a state dict of an encoder."""
    arrays = saved(tmp_path)[1]
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return str(tmp_path / "a.pth"), tensors


def test_parameters_are_read(tmp_path):
    path, tensors = state(tmp_path)
    held = {name: torch.nn.Parameter(value) for name, value in tensors.items()}
    torch.save({"model": held}, path)
    arrays = loading.read(path, "config.init_from").arrays
    np.testing.assert_array_equal(arrays["cls_token"], tensors["cls_token"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(tmp_path, dtype):
    path, tensors = state(tmp_path)
    torch.save({name: value.to(dtype) for name, value in tensors.items()}, path)
    arrays = loading.read(path, "config.init_from").arrays
    for name, value in tensors.items():
        np.testing.assert_array_equal(arrays[name], value.to(dtype).float())


def test_the_weights_that_are_taken_are_told(tmp_path, capsys):
    path, tensors = state(tmp_path)
    averaged = {f"module.{name}": value + 1 for name, value in tensors.items()}
    torch.save({"model": tensors, "model_ema": averaged, "epoch": 3}, path)
    arrays = loading.read(path, "config.init_from").arrays
    np.testing.assert_array_equal(arrays["cls_token"], tensors["cls_token"])
    told = f"{path}: the weights under 'model' are taken, not those under model_ema"
    assert told in capsys.readouterr().out
    torch.save({"model_ema": averaged}, path)
    arrays = loading.read(path, "config.init_from").arrays
    np.testing.assert_array_equal(arrays["cls_token"], tensors["cls_token"] + 1)
    assert "the weights under 'model_ema' are taken" in capsys.readouterr().out
    torch.save({"student": tensors, "teacher": averaged}, path)
    with pytest.raises(ValueError, match="Save student or teacher alone"):
        loading.read(path, "config.init_from")


@pytest.mark.parametrize("prefix", ["model.", "net.", "module._orig_mod."])
def test_a_prefix_of_a_lightning_file_is_taken_off(tmp_path, capsys, prefix):
    path, tensors = state(tmp_path)
    wrapped = {f"{prefix}{name}": value for name, value in tensors.items()}
    torch.save({"state_dict": wrapped, "pytorch-lightning_version": "2.1"}, path)
    assert loading.read(path, "config.init_from").arrays.keys() == tensors.keys()
    assert "is taken off" in capsys.readouterr().out


ODD = {  # case -> what stands in place of a weight, what is said of it
    "sparse": (lambda x: x.to_sparse(), "of layout sparse_coo"),
    "sparse rows": (lambda x: x.to_sparse_csr(), "of layout sparse_csr"),
    "meta": (lambda x: x.to("meta"), "a meta tensor"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "of type float8_e4m3fn"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "quantised",
    ),
    "integers": (lambda x: x.to(torch.int8), "of type int8"),
    "complex": (lambda x: x.to(torch.complex64), "of type complex64"),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, on sparse and quantised ones.
@pytest.mark.parametrize("case", ODD)
def test_odd_tensors_are_refused(tmp_path, capsys, case):
    path, tensors = state(tmp_path)
    name = "blocks.0.mlp.fc1.weight"
    change, fault = ODD[case]
    torch.save({"model": {**tensors, name: change(tensors[name])}}, path)
    assert cli.main(["inspect", path]) == 2
    error = capsys.readouterr().err
    assert f"{name} is {fault}" in error and error.count("\n") == 1


def test_numbered_tensors_are_refused(tmp_path):
    path, _ = state(tmp_path)
    torch.save({0: torch.ones(2), 1: torch.ones(3)}, path)
    with pytest.raises(ValueError, match="its tensors are called 0 and the like"):
        loading.read(path, "config.init_from")
