# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch files: their weights are read, their pickles are not executed."""

import argparse
import os

import jax
import numpy as np
import pytest
import torch

import runs
from g2sd_jax import checkpoint, stages
from g2sd_jax.models import vit
from g2sd_jax.weights import torch_names


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


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harmful()}, "harmful.pth")
    with pytest.raises(ValueError, match="not a plain PyTorch weight file"):
        checkpoint.read("harmful.pth", "config.init_from")
    assert not os.path.exists("executed")


def test_a_file_without_weights_is_refused(tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"model": {"lr": 1.0}}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        checkpoint.read(path, "config.init_from")
