# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the device's part of the input costs beside the step: `g2sd bench --augment`."""

import re
import statistics
import time

import jax
import numpy as np

from g2sd_jax import parallel, stages, step, train
from g2sd_jax.data import fake
from g2sd_jax.tools import bench


def canvas_of(text: str) -> tuple[int, int]:
    """(height, width) of `--canvas=384x512`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise ValueError(f"--canvas={text!r}: give HEIGHTxWIDTH, such as 384x512.")
    return int(found[1]), int(found[2])


def measure(config, canvas: tuple[int, int] | None = None) -> dict:
    """Times draws and `prepare` from a canvas, and the step without them, in turns.

    Args:
        config: the recipe, whose augmentation and model are measured.
        canvas: (height, width) of what the host would send; None: what the recipe's
            source sends, its boxes too.
    """
    config = bench.untrained(config, "scan")
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_batch(config, mesh)
    stage = stages.build(config)
    example = bench.invented_batch(config)
    frozen, _ = train.frozen_variables(stage, config, example, mesh)
    program = step.build(config, stage, mesh, example)
    key = program.keys()["step"]
    state = program.start(program.init(program.keys()["init"]))
    # A picture in floating point counts as augmented: the step then only mixes.
    ready = parallel.to_global(bench.prepared(config, example), mesh)
    sent = example
    if canvas:  # Whose boxes the device draws.
        sent = {name: example[name] for name in example if name != "crop"}
        sent["image"] = canvases(config, canvas)
    full = parallel.to_global(sent, mesh)

    @jax.jit
    def augment(batch, key, turn):
        draws = stage.draw(jax.random.fold_in(key, turn), batch)
        return stage.augment(batch, draws)["image"]

    seconds = {"augment": [], "step": []}
    began, turn = None, 0
    while began is None or turn < bench.LEAST_STEPS or _since(began) < SECONDS:
        at = time.perf_counter()
        jax.block_until_ready(augment(full, key, turn))
        seconds["augment"].append(_since(at))
        at = time.perf_counter()
        state, told = program.step(state, frozen, ready, key)
        jax.block_until_ready(told)
        seconds["step"].append(_since(at))
        if began is None:  # That turn held the compilation.
            began, seconds = time.perf_counter(), {name: [] for name in seconds}
        turn += 1
    augmenting, alone = (statistics.median(each) for each in seconds.values())
    return dict(
        stage=config.stage,
        device=jax.devices()[0].device_kind,
        devices=mesh.size,
        dtype=config.compute_dtype,
        batch=config.batch,
        canvas=list(sent["image"].shape[1:3]),
        image_size=list(config.model.image_size),
        turns=len(seconds["step"]),
        augment_ms_per_image=1000 * augmenting / config.batch,
        step_ms_per_image=1000 * alone / config.batch,
        share_of_step=augmenting / alone,
        jax=jax.__version__,
    )


SECONDS = 30.0  # A quiet half minute outlasts what else the machine does.


def _since(began: float) -> float:
    return time.perf_counter() - began


def canvases(config, canvas):
    """[b, *canvas, C] uint8 of one process: a few invented pictures, repeated."""
    few = min(config.batch, 8)
    made = fake.dataset(few, canvas, config.model.channels, 1).fetch(np.arange(few))
    rows = np.resize(np.arange(few), config.batch // jax.process_count())
    return made["image"][rows]


def describe(figures: dict) -> str:
    """The figures as a line for a reader."""
    shapes = {key: "x".join(map(str, figures[key])) for key in ("canvas", "image_size")}
    return (
        "{stage} on {devices} x {device}, {dtype}, batch {batch}: augmenting {canvas} "
        "to {image_size} takes {augment_ms_per_image:.3f} ms an image, "
        "{share_of_step:.2%} of the step's {step_ms_per_image:.2f} ms ({turns} turns)"
    ).format(**figures | shapes)
