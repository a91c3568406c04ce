# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The same losses whatever the devices, the sharding and the micro-batches."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import runs
from g2sd_jax import evaluation, parallel, stages, step, train
from g2sd_jax.data import order, source
from g2sd_jax.tools import collectives, hlo

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
    program = step.build(config, built, mesh, example)
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


@pytest.mark.parametrize("stage", ["linprobe", "finetune:task=segmentation"])
def test_judging_sends_parameters_and_nothing_of_the_batch(stage, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)
    mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=8)))

    def sent(batch):
        built = stages.build(runs.small(stage, batch=batch))
        shapes = jax.eval_shape(built.init, jax.random.key(0), {})
        given = shapes, jax.eval_shape(built.frozen)
        homes = parallel.shardings(given, mesh)
        given = jax.tree.map(parallel.placed_shape, given, homes)
        rows, _ = next(iter(built.evaluators["eval"].batches()))
        predict = evaluation.compiled(built.evaluators["eval"], mesh)
        program = predict.lower(*given, parallel.to_global(rows, mesh)).compile()
        found = collectives.find(hlo.read(program.as_text()), mesh.size)
        split = [leaf for leaf in jax.tree.leaves(given) if any(leaf.sharding.spec)]
        return collectives.summary(found)["kinds"], sum(leaf.size for leaf in split)

    few, size = sent(16)
    assert few == sent(64)[0]
    assert set(few) == {"all-gather"}
    # Each parameter at most once; those of the auxiliary head are not asked for.
    assert 0.5 * size < few["all-gather"]["elements"] <= size
