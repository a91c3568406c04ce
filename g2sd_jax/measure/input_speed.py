# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a recipe's pictures arrive: `g2sd bench --input --config=RECIPE`.

The pipeline's host work beside a plain Pillow loop that makes the same pictures, in
turns within one process, so that a busy machine slows both. Flip, RandAugment, erasing
and the resize are the loop's too, though the pipeline leaves them to the device. Of a
segmentation recipe both read pictures and label maps, and resize on the host.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import tasks
from g2sd_jax.data import order, threads
from g2sd_jax.measure import readers

PICTURES, BATCH = 256, 64  # Of the training split, taken again in every round.
COMPARED = 64  # Of them, pixel by pixel.
ROUNDS = 7


def measure(
    config: ConfigDict, original: str = "", step: float = 0.0
) -> dict[str, Any]:
    """Times the pipeline, and a plain Pillow loop that makes the same pictures.

    Args:
        config: the recipe; its source holds picture files.
        original: a folder or tar whose pictures the Pillow loop reads instead, where
            the recipe's are a prepared copy of them; "" = the same.
        step: images/s of the step that is fed; 0 = unknown.
    """
    if "task" in config:
        tasks.complete(config)
    both = readers.of(config, original)
    mine, others = (
        order.epoch_order(config.seed, 0, count)[:PICTURES]
        for count in (both.count, both.theirs)
    )
    rng = np.random.default_rng(config.seed)

    def by_pillow():
        for index in map(int, others):
            both.load(index, rng.random() < config.augment.flip, rng)

    def by_pipeline(dataset):
        parts = iter([mine[at : at + BATCH] for at in range(0, len(mine), BATCH)])
        for _ in order.read_ahead(lambda p: dataset.fetch(p, 0), parts, dataset.ahead):
            pass

    cores = threads.cores()
    one, every = map(both.dataset, (1, len(cores)))
    seconds = []  # [ROUNDS, 3, 2] a picture: Pillow, one core, every core; clock, CPU.
    for _ in range(ROUNDS):
        with pinned(cores[:1]):
            pillow = timed(by_pillow) / len(others)
            alone = timed(by_pipeline, one) / len(mine)
        seconds.append((pillow, alone, timed(by_pipeline, every) / len(mine)))
    ratio = lambda a, b: np.median(np.divide(a, b), axis=0).tolist()  # Of each round.
    pillow, alone, together = np.moveaxis(seconds, 1, 0)
    times_pillow, cpu_times_pillow = ratio(pillow, alone)
    times_one, cpu_of_one = ratio(alone, together)
    pillow, alone, together = (
        np.median(each, axis=0) for each in (pillow, alone, together)
    )
    figures = both.fidelity(one, mine[:COMPARED])
    return dict(
        stage=config.stage,
        source=both.origin,
        pictures=len(mine),
        kilobytes=float(np.mean([both.bytes(int(i)) for i in mine])) / 1000,
        pillow_images_per_s=float(1 / pillow[0]),
        pillow_cpu_ms=float(1000 * pillow[1]),
        images_per_s_per_core=float(1 / alone[0]),
        cpu_ms=float(1000 * alone[1]),
        times_pillow=times_pillow,
        cpu_times_pillow=cpu_times_pillow,
        cores=len(cores),
        images_per_s=float(1 / together[0]),
        times_one_core=times_one,
        # What the cores would make if nothing else ran: more work in all lowers it.
        cpu_times_one_core=len(cores) * cpu_of_one,
        **figures,
        step_images_per_s=step or None,
        step_waits=max(0.0, 1 - 1 / together[0] / step) if step else None,
    )


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keeps this thread, and those it starts, on some cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--input keeps to one core at a time, which needs Linux.")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed(function: Callable, *arguments: Any) -> np.ndarray:
    """Times a call: [2] seconds by the clock, and of all processors' work."""
    began = np.array([time.perf_counter(), time.process_time()])
    function(*arguments)
    return np.array([time.perf_counter(), time.process_time()]) - began


def describe(figures: Mapping[str, Any]) -> str:
    """Writes the figures as a few lines for a reader."""
    lines = (
        "input of {stage} from {source}, {pictures} pictures of {kilobytes:.1f} kB\n"
        "  one core: {images_per_s_per_core:.0f} images/s, {times_pillow:.2f} times a "
        "Pillow loop's {pillow_images_per_s:.0f}\n"
        "  its work: {cpu_ms:.2f} ms of CPU each; Pillow's {pillow_cpu_ms:.2f}, "
        "{cpu_times_pillow:.2f} times that\n"
        "  {cores} cores: {images_per_s:.0f} images/s, {times_one_core:.2f} times one; "
        "by its work {cpu_times_one_core:.2f}\n"
        "  against Pillow's pixels: mean error {mean_error:.2f} grey levels, "
        "{share_beyond_8:.2%} beyond 8"
    )
    if "labels_differ" in figures:
        lines += (
            "\n  {labels_differ:.2%} of the labels differ; pixels do where Pillow "
            "blurs what shrinks"
        )
    if figures["step_waits"] is not None:
        lines += (
            "\n  a step of {step_images_per_s:.0f} images/s waits {step_waits:.0%} of "
            "its time"
        )
    return lines.format(**figures)
