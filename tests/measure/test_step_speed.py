# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Counted FLOPs against the published table, and a bench of a tiny step."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from g2sd_jax import open_keys, parallel, recipes, stages, step
from g2sd_jax.measure import augmentation, flops, shapes, step_speed
from g2sd_jax.tools import bench

# What compilers make is measured.
pytestmark = pytest.mark.usefixtures("optimised")

# GFLOPs per image at 224 (method, section 14), embedding the visible patches only; for
# MAE and DMAE the table counts all patches' embedding, 0.35 to 0.58 more.
PUBLISHED = {
    "generic_distill:student=s16": 25.21,
    "generic_distill:student=ti16": 17.21,
    "specific_cls:student=s16": 62.76,
    "specific_cls:student=ti16": 42.64,
    "finetune:model=s16": 27.48,
    "finetune:model=ti16": 7.46,
    "pretrain:model=b16": 58.45 - 0.34,
    "pretrain:model=l16": 124.22 - 0.46,
    "dmae_distill": 81.83 - 0.57,
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_flops_of_the_published_recipes(recipe):
    config = recipes.load(recipe, {"batch": 2, "mesh.data": 1})
    config = open_keys.assume(config)
    config = step_speed.untrained(config, "scan")
    stage = stages.build(config)
    example = step_speed.invented_batch(config, stage.reads)
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    program = step.build(config, stage, mesh)
    # Shapes are enough: nothing of these sizes is computed here.
    frozen = shapes.of_frozen(stage, config, mesh)
    ready = step_speed.prepared(config, example)
    counted = step_speed.model_flops(stage, program.state, frozen, ready) / 1e9
    assert counted == pytest.approx(PUBLISHED[recipe], abs=0.01)


def test_flops_by_hand():
    a, b = np.zeros((3, 4, 5), np.float32), np.zeros((3, 5, 6), np.float32)
    product = lambda a, b: jnp.einsum("nij,njk->nik", a, b)
    assert flops.matmul(product, a, b) == 2 * 3 * 4 * 5 * 6

    def loop(a, b):
        body = lambda total, _: (total + product(a, b).sum(), None)
        return jax.lax.scan(body, 0.0, length=7)[0]

    assert flops.matmul(jax.jit(loop), a, b) == 7 * 2 * 3 * 4 * 5 * 6
    image, kernel = (
        np.zeros((1, 8, 8, 2), np.float32),
        np.zeros((3, 3, 2, 4), np.float32),
    )
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops.matmul(convolve, image, kernel) == 2 * 8 * 8 * 4 * 9 * 2


@pytest.mark.slow  # Its parts are tested one by one.
def test_bench_of_a_tiny_step(monkeypatch, tmp_path):
    monkeypatch.setattr(step_speed, "LEAST_SECONDS", 0.0)
    config = runs.small("generic_distill")
    figures = step_speed.measure(config, "scan", peak=1.0, trace=str(tmp_path))
    assert figures["batch"] == config.batch
    per_second = figures["images_per_s"] * figures["step_ms"] / 1000
    assert per_second == pytest.approx(config.batch)
    rate = figures["gflop_per_image"] * figures["images_per_s"] / 1000
    assert figures["tflops"] == pytest.approx(rate)
    assert figures["share_of_peak"] == pytest.approx(rate / jax.device_count())
    assert figures["compile_cached_s"] < figures["compile_cold_s"]
    assert list(tmp_path.rglob("*.xplane.pb"))
    told = step_speed.describe(figures)
    assert "generic_distill on 8 x cpu" in told
    assert "scan, attention heads:" in told


@pytest.mark.slow
def test_bench_of_augmentation(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(augmentation, "SECONDS", 0.0)
    config = runs.small("pretrain", total_steps=1)
    monkeypatch.setattr(bench.recipes, "parse", lambda parser, argv: given)
    out = str(tmp_path / "figures.json")
    given = types.SimpleNamespace(
        config=config,
        augment=True,
        canvas="24x32",
        out=out,
        input=False,
        original="",
        step=0.0,
    )
    assert bench.main([]) == 0
    with open(out) as file:
        [figures] = json.load(file)
    assert figures["canvas"] == [24, 32] and figures["image_size"] == [16, 16]
    share = figures["augment_ms_per_image"] / figures["step_ms_per_image"]
    assert figures["share_of_step"] == pytest.approx(share) and share > 0
    assert figures["turns"] >= step_speed.LEAST_STEPS - 1
    told = capsys.readouterr().out
    assert "augmenting 24x32 to 16x16 takes" in told
    for wrong in ("24", "0x3", "3x"):
        with pytest.raises(ValueError, match=r"--canvas=.*384x512"):
            augmentation.canvas_of(wrong)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--input", "--augment"), "--augment and --input measure two things"),
        (("--canvas=24x32",), "--canvas=24x32 is for --augment"),
        (("--input", "--canvas=24x32"), "--canvas=24x32 is for --augment"),
        (("--augment", "--original=x.tar"), "--original=x.tar is for --input"),
        (("--step=9",), "--step=9.0 is for --input"),
    ],
)
def test_options_of_another_measure_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        bench.main(["--config=pretrain:smoke", *given])
