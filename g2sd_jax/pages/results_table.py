# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's results table: a teacher, and one student by several methods."""

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from g2sd_jax import core, errors, finished, recipes, stages, workdir
from g2sd_jax.measure import speed


class Row(NamedTuple):
    """One method of the results table."""

    method: str
    params: int
    throughput: float  # images/s relative to the teacher's
    generic: str  # yes, no; – for the teacher
    specific: str
    scores: tuple[float, ...]  # one per seed, or one that they share
    others: Mapping[str, float | None] = {}  # means of the task's further scores

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)


def rows(config: ConfigDict, folder: str) -> tuple[list[Row], list[speed.Speed]]:
    """The rows of a chain's table, whose models are timed side by side."""
    runs = [finished.chain_runs(config, folder, step) for _, step in config.rows]
    folders = [run for run, *_ in runs]
    models = [finished.from_run(folder) for folder in folders]
    speeds = speed.compare(models)
    table_rows = []
    for i, (method, _) in enumerate(config.rows):
        generic, specific = stages_behind(folders[i]) if i else ("–", "–")
        row = Row(
            method=method,
            params=models[i].params,
            throughput=speeds[i].relative,
            generic=generic,
            specific=specific,
            scores=scores_of(runs[i]),
            others=other_scores(models[i], runs[i]),
        )
        table_rows.append(row)
    return table_rows, speeds


def check_rows(config: ConfigDict) -> None:
    """Refuses a report on steps the chain does not have, before anything is trained."""
    specs = {name: spec for name, spec, _ in config.steps}
    for method, step in config.rows:
        errors.lookup(f"config.rows: the step of {method!r}", step, specs)
    if config.reconstructions:
        errors.lookup("config.reconstructions", config.reconstructions, specs)


def stages_behind(folder: str) -> tuple[str, str]:
    """Whether generic and whether specific distillation made the run's weights.

    Generic distillation is that of the run which `config.init_from` names, if any.
    """
    config = recipes.from_workdir(folder)
    before = ""
    if "init_from" in config and config.init_from:
        before = stages.distills(recipes.from_workdir(config.init_from).stage)
    answer = {True: "yes", False: "no"}
    specific = stages.distills(config.stage) == "specific"
    return answer[before == "generic"], answer[specific]


def scores_of(runs: Sequence[str]) -> tuple[float, ...]:
    """The scores of the runs of a chain's step."""
    name = metric_name(score_of(runs[0]))
    return tuple(
        errors.lookup(f"metric of {run}", name, final_metrics(run)) for run in runs
    )


def other_scores(
    model: finished.Finished, runs: Sequence[str]
) -> dict[str, float | None]:
    """The means of a task's further scores over the runs of a step, by name.

    One that knowing nothing has in full, such as top-5 among five classes, is left out.
    """
    means = {}
    for score in speed.evaluator_of(model).scores[1:]:
        if score.chance is not None and score.chance >= 100:
            continue
        values = [final_metrics(run).get(metric_name(score)) for run in runs]
        means[score.name] = None if None in values else statistics.fmean(values)
    return means


def score_of(run: str) -> core.Score:
    """The score of the task that a run was trained for."""
    config = finished.config_of(run)
    model = finished.Finished(run, config, stages.build(config), {}, {})
    return speed.score_of(model)


def monitored(run: str) -> list[tuple[core.Score, float]]:
    """The scores, and their final values, of the evaluators of a run without a task."""
    config = finished.config_of(run)
    metrics = final_metrics(run)
    return [
        (evaluator.score, metrics[f"{name}/{evaluator.score.key}"])
        for name, evaluator in stages.build(config).evaluators.items()
        if evaluator.score and evaluator.score.higher_is_better
    ]


def metric_name(score: core.Score) -> str:
    """The name of a task's score in metrics.jsonl and DONE, such as `eval/top1`."""
    return f"{speed.TASK}/{score.key}"


def final_metrics(run: str) -> dict[str, float]:
    """The final metrics of a run that has ended."""
    metrics = workdir.final_metrics(run)
    if metrics is None:
        raise ValueError(f"{run} has not ended: it has no {workdir.DONE}.")
    return metrics


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def effects(rows: Sequence[Row], score: core.Score) -> list[str]:
    """A sentence on each comparison the table allows.

    Args:
        rows: of the table.
        score: what their scores are.
    """
    # Of two rows of a kind the first: what follows are its controls.
    by = {(row.generic, row.specific): row for row in reversed(rows[1:])}
    compared = (
        ("Generic distillation", ("yes", "no"), ("no", "no")),
        ("Specific distillation after it", ("yes", "yes"), ("yes", "no")),
        ("Specific distillation alone", ("no", "yes"), ("no", "no")),
        ("Both", ("yes", "yes"), ("no", "no")),
    )
    return [
        effect(what, by[one], by[other], score)
        for what, one, other in compared
        if one in by and other in by
    ]


def effect(what: str, row: Row, other: Row, score: core.Score) -> str:
    """How far `row` is above `other`, seed by seed, and whether chance explains it."""
    gains = [a - b for a, b in zip(row.scores, other.scores, strict=True)]
    mean, deviation = statistics.fmean(gains), spread(gains)
    if deviation is None:
        verdict = "one seed cannot tell whether that is chance"
    elif abs(mean) > deviation and (min(gains) > 0 or max(gains) < 0):
        verdict = "it helped" if (mean > 0) == score.higher_is_better else "it hurt"
    else:
        verdict = "it made no difference that these seeds can tell"
    around = "" if deviation is None else f" ± {deviation:.2f}"
    unit = "points" if score.unit in ("%", "") else score.unit
    by_seed = ", ".join(f"{gain:+.2f}" for gain in gains)
    return (
        f"**{what}** ({row.method} over {other.method}): {mean:+.2f}{around} {unit} "
        f"({by_seed}); {verdict}."
    )


def table(
    rows: Sequence[Row], score: core.Score
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and cells, as text: the score first, for a narrow page cuts the last ones.

    Args:
        rows: one per method, the teacher's first.
        score: what their scores are.
    """
    scale, unit = (1e6, "M") if rows[0].params >= 1e6 else (1e3, "thousands")
    others = tuple(rows[0].others)
    header = ["method", score.name, "share", "generic", "specific", f"params ({unit})"]
    share = lambda row: f"{100 * row.mean / rows[0].mean:.1f} %"
    shown = lambda value: "–" if value is None else f"{value:.2f}"
    return [*header, "throughput", "each seed", *others], [
        (
            row.method,
            plus_minus(row.scores),
            share(row) if rows[0].mean else "–",
            row.generic,
            row.specific,
            f"{row.params / scale:.2f}",
            f"{row.throughput:.2f}x",
            ", ".join(f"{value:.1f}" for value in row.scores),
            *(shown(row.others[name]) for name in others),
        )
        for row in rows
    ]


def plus_minus(values: Sequence[float]) -> str:
    deviation = spread(values)
    around = "" if deviation is None else f" ± {deviation:.2f}"
    return f"{statistics.fmean(values):.2f}{around}"


def steps(
    config: ConfigDict, folder: str, seconds: Mapping[str, float]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and cells: recipe, length and time of every step of a chain."""
    cells = []
    for name, spec, _ in config.steps:
        first, *_ = runs = finished.chain_runs(config, folder, name)
        run_config = recipes.from_workdir(first)
        done = final_metrics(first)
        made = {os.path.relpath(run, folder) for run in runs}
        times = {
            run: f"{seconds[run]:.1f}" if run in seconds else "?" for run in made
        }  # A run that the seeds share stands under one of them.
        took = [times.get(f"seed{seed}/{name}", "–") for seed in config.seeds]
        batch, lr = str(run_config.batch), f"{run_config.optim.lr:g}"
        cells.append((name, f"`{spec}`", str(done.get("step", "?")), batch, lr, *took))
    times = [f"s, seed {seed}" for seed in config.seeds]
    return ["step", "recipe", "steps", "batch", "lr", *times], cells


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
