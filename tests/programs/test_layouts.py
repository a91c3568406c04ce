# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The same losses whatever the devices, the sharding and the micro-batches."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import runs
import slow
from g2sd_jax import parallel, stages, step
from g2sd_jax.data import order, source
from g2sd_jax.evaluators import fold
from g2sd_jax.measure import collectives, hlo

STEPS = 4
# Devices, fsdp, micro-batches; all against one device that does it all at once.
LAYOUTS = [(2, 1, 1), (8, 1, 1), (8, 8, 1), (1, 1, 4)]
CASES = [("finetune", *layout) for layout in LAYOUTS]
CASES += [("generic_distill", *layout) for layout in [(8, 8, 1), (4, 2, 4)]]
CASES += [(stage, 8, 2, 1) for stage in ("specific_cls", "dmae_distill")]
CASES += [(runs.DETECTION[0], *layout) for layout in [(2, 1, 1), (8, 1, 1), (1, 1, 4)]]
CASES += [(runs.DETECTION[1], 8, 8, 1)]


@functools.cache
def losses(stage, devices, fsdp, parts):
    config = runs.small(stage, batch=32, accumulate=parts)
    mesh = ConfigDict(dict(data=-1, fsdp=fsdp))
    mesh = parallel.make_mesh(mesh, jax.devices()[:devices])
    built = stages.build(config)
    dataset = source.load(config, config.data.train_split, built.reads)
    batches = order.train_batches(dataset, config.batch, config.seed)
    example = next(batches)
    frozen, _ = stages.frozen_variables(built, config, example, mesh)
    program = step.build(config, built, mesh)
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


@pytest.mark.parametrize(
    ("stage", "devices", "fsdp", "parts"),
    slow.parameters(CASES, quick=[]),
)
def test_same_losses(stage, devices, fsdp, parts, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)  # So that even tiny arrays are split.
    expected = losses(stage, 1, 1, 1)
    assert np.ptp(expected[:, 0]) > 1e-4  # It learns: later steps see earlier ones.
    np.testing.assert_allclose(losses(stage, devices, fsdp, parts), expected, rtol=2e-5)


@pytest.mark.usefixtures("optimised")  # The text of a program is compared.
@pytest.mark.parametrize(
    "stage",
    slow.parameters(["linprobe", "finetune:task=segmentation"], quick=["linprobe"]),
)
def test_judging_sends_parameters_and_nothing_of_the_batch(stage, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)
    mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=8)))

    def sent(batch):
        built = stages.build(runs.small(stage, batch=batch))
        shapes = jax.eval_shape(built.init, jax.random.key(0))
        given = shapes, jax.eval_shape(built.frozen)
        homes = parallel.shardings(given, mesh)
        given = jax.tree.map(parallel.with_sharding, given, homes)
        rows, _ = next(iter(built.evaluators["eval"].batches()))
        predict = fold.compile_predict(built.evaluators["eval"], mesh)
        program = predict.lower(*given, parallel.to_global(rows, mesh)).compile()
        found = collectives.find(hlo.read(program.as_text()), mesh.size)
        split = [leaf for leaf in jax.tree.leaves(given) if any(leaf.sharding.spec)]
        return collectives.summary(found)["kinds"], sum(leaf.size for leaf in split)

    few, size = sent(16)
    assert few == sent(64)[0]
    assert set(few) == {"all-gather"}
    # Each parameter at most once; those of the auxiliary head are not asked for.
    assert 0.5 * size < few["all-gather"]["elements"] <= size


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_detector_gathers_nothing_over_devices():
    """Neither the choice of anchors and regions, nor suppression, nor the groups."""
    config = runs.small(runs.DETECTION[0], batch=16)
    mesh = parallel.make_mesh(config.mesh)
    built = stages.build(config)
    program = step.build(config, built, mesh)
    dataset = source.load(config, config.data.train_split, built.reads)
    example = dataset.fetch(np.arange(config.batch), 0)
    batch = parallel.to_global(example, mesh)
    compiled = program.step.lower(program.state, {}, batch, program.keys()["step"])
    text = compiled.compile().as_text()
    kinds = collectives.summary(collectives.find(hlo.read(text), mesh.size))["kinds"]
    assert set(kinds) == {"all-reduce"}, kinds
