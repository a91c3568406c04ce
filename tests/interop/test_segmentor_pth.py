# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A segmentor's .pth has the very entries of the authors' own state dict."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import finished_runs
import test_golden_segmentation
from g2sd_jax import checkpoint, cli, core, palette, workdir
from g2sd_jax.models import vit
from g2sd_jax.weights import graft, loading
from golden_files import agree, under


def test_names_shapes_types_and_values_are_the_references(tmp_path):
    golden = test_golden_segmentation.load("distiller_forward")
    config, stage, variables, _ = test_golden_segmentation.distiller(golden, tmp_path)
    path = str(tmp_path / "run")
    manager = checkpoint.Manager(path, keep=1)
    state = {"batch_stats": variables["batch_stats"]}
    state = core.TrainState(jnp.int32(1), variables["params"], state, {})
    names = [f"class {i}" for i in range(config.data.classes)]
    manager.save(1, state, dict(stage.describe, class_names=names))
    manager.close()
    workdir.write_json(f"{path}/config.json", workdir.to_json_dict(config))
    assert cli.main(["export", f"--workdir={path}", "--format=torch"]) == 0

    file = torch.load(f"{path}/export/torch/model.pth", weights_only=True)
    got, want = file["state_dict"], under(golden, "param")
    want = {n: a for n, a in want.items() if n.startswith("student.")}
    want = {n.removeprefix("student."): a for n, a in want.items()}
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].numpy().dtype == array.dtype, name
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(got[name].numpy(), array, err_msg=name)
    assert file["meta"]["CLASSES"] == names
    assert file["meta"]["PALETTE"] == palette.colours()[: len(names)].tolist()

    weights = loading.read(f"{path}/export/torch/model.pth", "--workdir")
    shapes = jax.eval_shape(lambda: variables)
    back = graft.onto(shapes, weights, grid=vit.grid(config.model))
    logits = finished_runs.segmentor_logits
    agree(logits(config, back), logits(config, variables), "logits", 1e-6)
