# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The device's part of the input, timed beside the step: `g2sd bench --augment`."""

import re
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import parallel, stages, step
from g2sd_jax.data.memory import fake
from g2sd_jax.measure import step_speed


def canvas_of(text: str) -> tuple[int, int]:
    """Reads (height, width) of `--canvas=384x512`."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise ValueError(f"--canvas={text!r}: give HEIGHTxWIDTH, such as 384x512.")
    return int(match[1]), int(match[2])


def measure(
    config: ConfigDict, canvas: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Times draws and `prepare` from a canvas, and the step without them, in turns.

    Args:
        config: the recipe, whose augmentation and model are measured.
        canvas: (height, width) of what the host would send; None: what the recipe's
            source sends, its boxes too.
    """
    config = step_speed.untrained(config, "scan")
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_batch(config, mesh)
    stage = stages.build(config)
    example = step_speed.invented_batch(config, stage.reads)
    frozen, _ = stages.frozen_variables(stage, config, example, mesh)
    program = step.build(config, stage, mesh)
    key = program.keys()["step"]
    state = program.start(program.init(program.keys()["init"]))
    # A picture in floating point counts as augmented: the step then only mixes.
    ready = parallel.to_global(step_speed.prepared(config, example), mesh)
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
    while began is None or turn < step_speed.LEAST_STEPS or _since(began) < SECONDS:
        at = time.perf_counter()
        jax.block_until_ready(augment(full, key, turn))
        seconds["augment"].append(_since(at))
        at = time.perf_counter()
        state, metrics = program.step(state, frozen, ready, key)
        jax.block_until_ready(metrics)
        seconds["step"].append(_since(at))
        if began is None:  # That turn held the compilation.
            began, seconds = time.perf_counter(), {name: [] for name in seconds}
        turn += 1
    augmenting, alone = (statistics.median(turns) for turns in seconds.values())
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


def canvases(config: ConfigDict, canvas: tuple[int, int]) -> np.ndarray:
    """Makes the pictures of one process: a few invented ones, repeated.

    Returns:
        [b, *canvas, c] uint8.
    """
    count = min(config.batch, 8)
    examples = fake.dataset(count, canvas, config.model.channels, 1)
    rows = np.resize(np.arange(count), config.batch // jax.process_count())
    return examples.fetch(np.arange(count))["image"][rows]


def describe(figures: Mapping[str, Any]) -> str:
    """Writes the figures as a line for a reader."""
    shapes = {key: "x".join(map(str, figures[key])) for key in ("canvas", "image_size")}
    return (
        "{stage} on {devices} x {device}, {dtype}, batch {batch}: augmenting {canvas} "
        "to {image_size} takes {augment_ms_per_image:.3f} ms an image, "
        "{share_of_step:.2%} of the step's {step_ms_per_image:.2f} ms ({turns} turns)"
    ).format(**figures | shapes)
