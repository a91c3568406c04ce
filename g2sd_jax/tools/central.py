# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's central table: a teacher, and one student by several methods."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from g2sd_jax import core, recipes, train
from g2sd_jax.tools import finished, speed


class Score(NamedTuple):
    """What a task is judged by, in %."""

    key: str  # in DONE
    name: str  # in tables
    count: str  # in DONE: how many were judged
    of: str  # and what those are


SCORES = (
    Score("eval/top1", "top-1", "eval/count", "held-out examples"),
    Score("eval/mIoU", "mIoU", "eval/pixels", "pixels of held-out pictures"),
)


GENERIC = ("generic_distill", "dmae_distill")  # Stages that distil without a task.


class Row(NamedTuple):
    """One method of the central table."""

    method: str
    params: int
    throughput: float  # images/s relative to the teacher's
    generic: str  # yes, no; – for the teacher
    specific: str
    scores: tuple[float, ...]  # one per seed

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)


def rows(config: ConfigDict, workdir: str) -> tuple[list[Row], list[speed.Speed]]:
    """The rows of a chain's table, their models timed side by side."""
    first = os.path.join(workdir, f"seed{config.seeds[0]}")
    folders = [os.path.join(first, step) for _, step in config.rows]
    models = [finished.from_run(folder) for folder in folders]
    speeds = speed.compare(models)
    found = [
        Row(
            method,
            models[i].params,
            speeds[i].relative,
            *(stages_behind(folders[i]) if i else ("–", "–")),
            scores_of(workdir, config.seeds, step),
        )
        for i, (method, step) in enumerate(config.rows)
    ]
    return found, speeds


def check_rows(config: ConfigDict) -> None:
    """Refuses a report on steps the chain does not have, before anything is trained."""
    known = {name: spec for name, spec, _ in config.steps}
    for method, step in config.rows:
        core.lookup(f"config.rows: the step of {method!r}", step, known)
    core.lookup("config.reconstructions", config.reconstructions, known)


def stages_behind(workdir: str) -> tuple[str, str]:
    """Whether generic and whether specific distillation made the run's weights."""
    config = recipes.of_run(workdir)
    start = recipes.of_run(config.init_from) if config.init_from else {"stage": "none"}
    said = {True: "yes", False: "no"}
    specific = config.stage.startswith("specific_")
    return said[start["stage"] in GENERIC], said[specific]


def scores_of(workdir: str, seeds: Sequence[int], step: str) -> tuple[float, ...]:
    runs = [os.path.join(workdir, f"seed{seed}", step) for seed in seeds]
    key = score_of(runs[0]).key
    return tuple(read_json(os.path.join(run, train.DONE))[key] for run in runs)


def score_of(workdir: str) -> Score:
    """What the finished run in `workdir` was judged by."""
    done = read_json(os.path.join(workdir, train.DONE))
    found = [score for score in SCORES if score.key in done]
    if not found:
        raise ValueError(
            f"{workdir} has none of {', '.join(score.key for score in SCORES)} in its "
            f"{train.DONE}; config.rows of a chain are runs of classification or "
            "segmentation."
        )
    return found[0]


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def effects(rows: Sequence[Row]) -> list[str]:
    """A sentence on each comparison the table allows."""
    by = {(row.generic, row.specific): row for row in rows[1:]}
    compared = (
        ("Generic distillation", ("yes", "no"), ("no", "no")),
        ("Specific distillation after it", ("yes", "yes"), ("yes", "no")),
        ("Specific distillation alone", ("no", "yes"), ("no", "no")),
        ("Both", ("yes", "yes"), ("no", "no")),
    )
    return [
        effect(what, by[one], by[other])
        for what, one, other in compared
        if one in by and other in by
    ]


def effect(what: str, row: Row, other: Row) -> str:
    """What `row` has over `other`, seed by seed, and whether that says anything."""
    gains = [a - b for a, b in zip(row.scores, other.scores, strict=True)]
    mean, deviation = statistics.fmean(gains), spread(gains)
    if deviation is None:
        verdict = "one seed cannot tell whether that is chance"
    elif abs(mean) > deviation and (min(gains) > 0 or max(gains) < 0):
        verdict = "it helped" if mean > 0 else "it hurt"
    else:
        verdict = "it made no difference that these seeds can tell"
    around = "" if deviation is None else f" ± {deviation:.2f}"
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    return (
        f"**{what}** ({row.method} over {other.method}): {mean:+.2f}{around} points "
        f"({each}); {verdict}."
    )


def table(rows: Sequence[Row], score: Score) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and cells, as text."""
    scale, unit = (1e6, "M") if rows[0].params >= 1e6 else (1e3, "thousands")
    header = ["method", f"params ({unit})", "throughput", "generic", "specific"]
    return [*header, score.name, "each seed", "share"], [
        (
            row.method,
            f"{row.params / scale:.2f}",
            f"{row.throughput:.2f}x",
            row.generic,
            row.specific,
            plus_minus(row.scores),
            ", ".join(f"{score:.1f}" for score in row.scores),
            f"{100 * row.mean / rows[0].mean:.1f} %",
        )
        for row in rows
    ]


def plus_minus(values: Sequence[float]) -> str:
    deviation = spread(values)
    around = "" if deviation is None else f" ± {deviation:.2f}"
    return f"{statistics.fmean(values):.2f}{around}"


def steps(config: ConfigDict, workdir: str, seconds: Mapping[str, float]):
    """Header and cells: recipe, length and time of every step of a chain."""
    cells = []
    for name, spec, _ in config.steps:
        runs = [f"seed{seed}/{name}" for seed in config.seeds]
        of = recipes.of_run(os.path.join(workdir, runs[0]))
        done = read_json(os.path.join(workdir, runs[0], train.DONE))
        took = [f"{seconds[run]:.1f}" if run in seconds else "?" for run in runs]
        size = str(done["step"]), str(of.batch), f"{of.optim.lr:g}"
        cells.append((name, f"`{spec}`", *size, *took))
    times = [f"s, seed {seed}" for seed in config.seeds]
    return ["step", "recipe", "steps", "batch", "lr", *times], cells


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_json(path: str):
    with open(path, encoding="utf-8") as file:
        return json.load(file)
