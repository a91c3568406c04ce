# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The same losses whatever the devices, the sharding and the micro-batches."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import runs
from g2sd_jax import parallel, stages, train
from g2sd_jax import step as stepping
from g2sd_jax.data import order, source

STEPS = 4
# Devices, fsdp, micro-batches; all against one device that does it all at once.
LAYOUTS = [(2, 1, 1), (4, 1, 1), (8, 1, 1), (8, 2, 1), (8, 8, 1), (1, 1, 2), (1, 1, 4)]
CASES = [("finetune", *layout) for layout in LAYOUTS]
CASES += [("generic_distill", *layout) for layout in [(2, 1, 1), (8, 8, 1), (4, 2, 4)]]


@functools.cache
def losses(stage, devices, fsdp, parts):
    config = runs.small(stage, batch=32, accumulate=parts)
    mesh = ConfigDict(dict(data=-1, fsdp=fsdp))
    mesh = parallel.make_mesh(mesh, jax.devices()[:devices])
    dataset = source.load(config, config.data.train_split)
    batches = order.train_batches(dataset, config.batch, config.seed)
    built = stages.build(config)
    example = next(batches)
    frozen, _ = train.frozen_variables(built, config, example, mesh)
    program = stepping.build(config, built, mesh, example)
    keys = program.keys()
    state = program.start(program.init(keys["init"]))
    spread = {axis for leaf in jax.tree.leaves(state) for axis in leaf.sharding.spec}
    assert ("fsdp" in spread) == (fsdp > 1)
    told = []
    for _ in range(STEPS):
        batch = parallel.to_global(next(batches), mesh)
        state, metrics = program.step(state, frozen, batch, keys["step"])
        told.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(told)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "devices", "fsdp", "parts"), CASES)
def test_same_losses(stage, devices, fsdp, parts, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)  # So that even tiny arrays are split.
    expected = losses(stage, 1, 1, 1)
    assert np.ptp(expected[:, 0]) > 1e-4  # It learns: later steps see earlier ones.
    np.testing.assert_allclose(losses(stage, devices, fsdp, parts), expected, rtol=2e-5)
