# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a recipe's pictures arrive: `g2sd bench --input --config=RECIPE`.

The pipeline's host work beside a plain Pillow loop that makes the same pictures, in
turns within one process, so that a busy machine slows both. Flip, RandAugment, erasing
and the resize are the loop's too, though the pipeline leaves them to the device. Of a
segmentation recipe both read pictures and label maps, and resize on the host.

The pipeline takes 1, 2, 4 … cores of the machine. What this process itself spends on a
picture, in which its interpreter is busy, bounds the pictures that it can hand over
however many cores there are.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import tasks
from g2sd_jax.data import order
from g2sd_jax.data.processes import threads, workers
from g2sd_jax.measure import readers

PICTURES = 256  # Of the training split, taken again in every round.
BATCHES, BATCH, BATCH_PER_CORE = 12, 128, 16  # Of a round, and rows of one, at least.
COMPARED = 64  # Pictures that are compared pixel by pixel.
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
        return len(others)

    cores = threads.cores()
    counts = core_counts(len(cores))
    with threads.closing():
        datasets = {count: both.dataset(count) for count in counts}
        for count in counts:  # Its processes start here, on their cores.
            with pinned(cores[:count]):
                by_pipeline(datasets[count], mine, count)
        rounds = []  # [ROUNDS, 1 + counts, 3]: Pillow, then each count of cores.
        for _ in range(ROUNDS):
            with pinned(cores[:1]):
                turns = [timed(by_pillow)]
            for count in counts:
                with pinned(cores[:count]):
                    turns.append(timed(by_pipeline, datasets[count], mine, count))
            rounds.append(turns)
        figures = both.fidelity(datasets[1], mine[:COMPARED])
    measured = rates(np.array(rounds), counts)
    waits = max(0.0, 1 - measured["images_per_s"] / step) if step else None
    return dict(
        stage=config.stage,
        source=both.origin,
        pictures=len(mine),
        kilobytes=float(np.mean([both.bytes(int(i)) for i in mine])) / 1000,
        **measured,
        **figures,
        step_images_per_s=step or None,
        step_waits=waits,
    )


def core_counts(cores: int) -> list[int]:
    """1, 2, 4 … up to all of them."""
    return sorted({*(2**n for n in range(cores.bit_length()) if 2**n < cores), cores})


def by_pipeline(dataset: Any, indices: np.ndarray, cores: int) -> int:
    """Makes training pictures of some examples; returns how many."""
    rows = max(BATCH, BATCH_PER_CORE * cores)
    indices = np.resize(indices, BATCHES * rows)
    parts = (indices[at : at + rows] for at in range(0, len(indices), rows))
    for _ in order.read_ahead(lambda p: dataset.fetch(p, 0), parts, dataset.ahead):
        pass
    return len(indices)


def rates(rounds: np.ndarray, counts: Sequence[int]) -> dict[str, Any]:
    """The figures of all rounds: medians, and ratios within a round.

    Args:
        rounds: [R, 1 + n, 3] of `timed`: Pillow's loop, then each of n counts.
        counts: [n] of cores; the first is 1, the last one all.
    """
    median = np.median(rounds, axis=0)
    pillow, alone, together = median[[0, 1, -1]]
    ratio = lambda a, b: np.median(rounds[:, a] / rounds[:, b], axis=0).tolist()
    times_pillow, _, cpu_times_pillow = ratio(0, 1)
    times_one, _, cpu_of_one = ratio(1, -1)
    by_cores = {
        str(n): float(1 / row[0]) for n, row in zip(counts, median[1:], strict=True)
    }
    return dict(
        pillow_images_per_s=float(1 / pillow[0]),
        pillow_cpu_ms=float(1000 * pillow[2]),
        images_per_s_per_core=float(1 / alone[0]),
        cpu_ms=float(1000 * alone[2]),
        times_pillow=times_pillow,
        cpu_times_pillow=cpu_times_pillow,
        cores=counts[-1],
        images_per_s=float(1 / together[0]),
        images_per_s_by_cores=by_cores,
        times_one_core=times_one,
        # What the cores would make if nothing else ran: more work in all lowers it.
        cpu_times_one_core=counts[-1] * cpu_of_one,
        python_us=float(1e6 * together[1]),
        python_images_per_s=float(1 / together[1]),
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


def timed(make: Callable[..., int], *arguments: Any) -> np.ndarray:
    """Times a call that returns how many pictures it made, per picture.

    Returns:
        [3] seconds: by the clock, of this process's work, and of all processes' work.
    """
    began = seconds()
    pictures = make(*arguments)
    return (seconds() - began) / pictures


def seconds() -> np.ndarray:
    """[3] what `timed` counts, up to now."""
    pools = [p for p in threads.made_here() if isinstance(p, workers.Pool)]
    own = time.process_time()
    return np.array(
        [time.perf_counter(), own, own + sum(pool.seconds() for pool in pools)]
    )


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
        "  images/s by cores: {by_cores}\n"
        "  the process that trains spends {python_us:.1f} µs on a picture: it could "
        "take {python_images_per_s:.0f} images/s from any number of cores\n"
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
    by_cores = ", ".join(
        f"{cores}: {rate:.0f}"
        for cores, rate in figures["images_per_s_by_cores"].items()
    )
    return lines.format(by_cores=by_cores, **figures)
