# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of a page of runs: figures, curves, pictures, configs, machines."""

import json
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import (
    core,
    errors,
    finished,
    json_files,
    metrics,
    recipes,
    stages,
    workdir,
)
from g2sd_jax.data import source as sources
from g2sd_jax.evaluators import fold
from g2sd_jax.measure import likeness
from g2sd_jax.pages import class_tables, page, plots, reconstructions

EXAMPLES = 8  # Images whose reconstruction is drawn.
DRAWN = (
    "Held-out images, {hidden} of the patches hidden (blue). Visible patches are "
    "pasted back. The model was {explained}."
)


def of_runs(named: Mapping[str, str]) -> str:
    """The page of one run, or of several side by side.

    Args:
        named: {name on the page: workdir}.
    """
    title = "Run " + next(iter(named)) if len(named) == 1 else "Runs side by side"
    logs = {name: rows_of(path) for name, path in named.items()}
    built = {name: stage_of(path) for name, path in named.items()}
    sections = [
        page.Section("Runs", [summary(named, logs, built)]),
        *curve_sections(logs, [stage for stage in built.values() if stage]),
        *differences(named),
    ]
    for name, path in named.items():
        sections += class_tables.drawn(name, path) + picture_sections(name, path)
        sections += class_tables.class_tables(name, path)
        sections += analysis_sections(path) + speed_sections(path)
    sections.append(page.Section("Environment", [environments(named)]))
    sections.append(page.Section("Configs", configs(named)))
    return page.html(title, sections)


def rows_of(folder: str) -> list[dict]:
    """The rows of a run's metrics.jsonl; [] of a run that logged nothing yet."""
    recipes.from_workdir(folder)  # Refuses what is no run.
    path = os.path.join(folder, "metrics.jsonl")
    return metrics.read_lines(path) if os.path.exists(path) else []


def stage_of(folder: str) -> core.Stage | None:
    """The stage of a run; None if its config, an older one, builds none any more."""
    try:
        return stages.build(finished.config_of(folder))
    except (ValueError, KeyError, AttributeError):
        return None


def summary(
    named: Mapping[str, str],
    logs: Mapping[str, Sequence[Mapping]],
    built: Mapping[str, core.Stage | None],
) -> dict:
    """The table of every run's stage, length, size, speed and last figures.

    A run is a column, so that the table of one or two fits the screen of a telephone.

    Args:
        named: {name on the page: workdir}.
        logs: {name on the page: rows of metrics.jsonl}.
        built: {name on the page: stage, or None where its config builds none}.
    """
    columns, ends = {}, {}
    for name, path in named.items():
        finals = workdir.final_metrics(path)
        last = {key: value for row in logs[name] for key, value in row.items()}
        ends[name] = finals or {
            key: value
            for key, value in last.items()
            if key == "step" or key.startswith("loss") or "/" in key
        }
        config = recipes.from_workdir(path)
        columns[name] = {
            "stage": config.stage,
            "seed": config.seed,
            "steps": ends[name].get("step", 0),
            "state": "done" if finals is not None else "not done",
            "parameters": trained_parameters(built[name]),
            "images/s in training": training_speed(logs[name]),
        }
    repeated = repeated_losses(logs)
    metric_names = {key for end in ends.values() for key in end} - {"step"} - repeated
    rows = [
        [row, *(column[row] for column in columns.values())]
        for row in next(iter(columns.values()))
    ]
    rows += [
        [key, *(figure(end.get(key)) for end in ends.values())]
        for key in sorted(metric_names)
    ]
    source = "DONE of each workdir; of a run not done, metrics.jsonl. Parameters: those"
    source += " that are trained. Images/s: the median of metrics.jsonl."
    return page.table(["", *named], rows, source)


def trained_parameters(stage: core.Stage | None) -> str:
    """How many numbers a stage trains, without making them."""
    if stage is None:
        return "–"
    shapes = jax.eval_shape(stage.init, jax.random.key(0))["params"]
    return f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)):,}"


def training_speed(rows: Sequence[Mapping]) -> str:
    """The median of the pictures a second that a run logged."""
    rates = [row["images_per_sec"] for row in rows if row.get("images_per_sec")]
    return f"{np.median(rates):,.4g}" if rates else "–"


def repeated_losses(logs: Mapping[str, Sequence[Mapping]]) -> set[str]:
    """Terms that are all of the loss in every run, and would be shown twice."""
    rows = [row for log in logs.values() for row in log if "loss" in row]
    terms = {key for row in rows for key in row if key.startswith("loss/")}
    return {key for key in terms if all(row.get(key) == row["loss"] for row in rows)}


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def curve_sections(
    logs: Mapping[str, Sequence[Mapping]], built: Sequence[core.Stage]
) -> list[page.Section]:
    """Plots of everything that was logged: losses, evaluation, the machine.

    Args:
        logs: {name on the page: rows of metrics.jsonl}.
        built: the runs' stages, whose scores name the axes.
    """
    scores, unplotted = {}, {"step"}
    for stage in built:
        scores |= fold.scores(stage)
        unplotted |= fold.count_names(stage)
        unplotted |= {chance.metric for chance in stage.chance.values()}
    unplotted |= repeated_losses(logs)
    logged = {key for rows in logs.values() for row in rows for key in row}
    groups = {"Losses": {}, "Evaluation": {}, "Optimisation and machine": {}}
    for key in sorted(logged - unplotted):
        curves = curves_of(logs, key)
        if not curves:
            continue
        if key.startswith("loss"):
            groups["Losses"][key] = curves
        else:
            evaluated = "/" in key
            group = "Evaluation" if evaluated else "Optimisation and machine"
            groups[group][key] = curves
    sections = []
    for title, curves in groups.items():
        if curves:
            sheets = plots.separate_curves(
                curves, {key: axis_label(key, scores) for key in curves}
            )
            source = f"metrics.jsonl of {', '.join(logs)}."
            drawn = [(key, plots.svg(sheet)) for key, sheet in sheets.items()]
            sections.append(page.Section(title, [page.pictures(drawn, source)]))
    return sections


def curves_of(logs: Mapping[str, Sequence[Mapping]], key: str) -> dict[str, np.ndarray]:
    """{run: [points, 2] step and value}, of the runs that logged `key`.

    {} where no run logged it twice: the table of the runs shows its one value.
    """
    curves = {}
    for name, rows in logs.items():
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            curves[name] = np.array(points)
    return curves if any(len(points) > 1 for points in curves.values()) else {}


def axis_label(key: str, scores: Mapping[str, core.Score]) -> str:
    """The text at the vertical axis of a metric's plot.

    Args:
        key: the metric.
        scores: by metric, those with a unit of their own.
    """
    leaf = key.rpartition("/")[2]
    if key.startswith("loss"):
        return "loss"
    if key in scores and scores[key].unit:
        return f"{leaf} ({scores[key].unit})"
    return plots.UNITS.get(key, leaf)


def differences(named: Mapping[str, str]) -> list[page.Section]:
    """The table of the keys in which the runs' configs differ."""
    configs = {
        name: errors.flatten(recipes.from_workdir(path).to_dict())
        for name, path in named.items()
    }
    keys = sorted({key for config in configs.values() for key in config})
    value = lambda config, key: str(config[key]) if key in config else "absent"
    rows = [
        [f"`{key}`", *(value(config, key) for config in configs.values())]
        for key in keys
        if len({value(config, key) for config in configs.values()}) > 1
    ]
    if not rows:
        return []
    table = page.table(["key", *named], rows, "config.json of each workdir.")
    return [page.Section("Where the configs differ", [table])]


def picture_sections(name: str, folder: str) -> list[page.Section]:
    """Reconstructions of held-out pictures, by a run that predicts pixels."""
    if not os.path.isdir(os.path.join(folder, "checkpoints")):
        return []
    config = recipes.from_workdir(folder)
    if "target" not in config:
        return []
    shown, caption = reconstructed(folder)
    picture = page.picture(
        "original, visible, reconstruction",
        plots.png(plots.pictures(shown)),
        f"Checkpoint of {folder}.",
    )
    return [page.Section(f"What {name} guesses", [picture, page.text(caption)])]


def analysis_of(folder: str) -> tuple[dict, str]:
    """The figures of `g2sd analyse` and their source; {} where there are none."""
    path = os.path.join(folder, likeness.FILE)
    if not os.path.exists(path):
        return {}, ""
    analysis = json_files.read(path)
    models = [os.path.relpath(model["workdir"], folder) for model in analysis["models"]]
    source = f"{likeness.FILE}, of {', '.join(models)}, made on "
    return analysis, f"{source}{versions(analysis['environment'])}."


def analysis_sections(folder: str) -> list[page.Section]:
    """Occlusion and CKA, as `g2sd analyse` measured them."""
    analysis, source = analysis_of(folder)
    sections = []
    if "occlusion" in analysis:
        part = analysis["occlusion"]
        caption = (
            f"{part['score']} on {part['examples']:,} pictures while more and more of "
            f"the {part['patches']} patches take the data set's mean colour. Salient "
            f"patches are those that count most for the answer of "
            f"{part['reference']}, by gradient times input; all models lose the same."
        )
        drawn = plots.svg(plots.occlusion(part))
        picture = page.picture("occlusion", drawn, source, wide=True)
        sections.append(
            page.Section("When patches are hidden", [page.text(caption), picture])
        )
    if "cka" in analysis:
        part = analysis["cka"]
        token = {"patches": "mean over the patches", "class": "class token"}
        caption = (
            f"Linear CKA of the {token[part['token']]} after every block, of "
            f"{part['examples']:,} pictures, against the blocks of "
            f"{part['reference']}. Above each map: about what unrelated features of "
            "these widths would give."
        )
        picture = page.picture("CKA", plots.svg(plots.cka(part)), source, wide=True)
        sections.append(
            page.Section("How alike the blocks see", [page.text(caption), picture])
        )
    return sections


def speed_sections(folder: str) -> list[page.Section]:
    """Parameters and throughput, which the table of a chain has already."""
    analysis, source = analysis_of(folder)
    if "throughput" not in analysis:
        return []
    rates = analysis["throughput"]
    rows = [
        [
            model["name"],
            f"{model['params']:,}",
            f"{rates[model['name']]['images_per_s']:,.0f}",
            f"{rates[model['name']]['relative']:.2f}x",
        ]
        for model in analysis["models"]
    ]
    header = ["model", "parameters", "images/s", "relative"]
    return [page.Section("Size and speed", [page.table(header, rows, source)])]


def configs(named: Mapping[str, str]) -> list[dict]:
    """The config of every run, folded away."""
    return [
        page.hidden(
            name,
            json.dumps(recipes.from_workdir(path).to_dict(), indent=1, sort_keys=True),
        )
        for name, path in named.items()
    ]


def environments(named: Mapping[str, str]) -> dict:
    """The list of the machines and versions that every run started on."""
    lines = []
    for name, path in named.items():
        file = os.path.join(path, "environment.json")
        exists = os.path.exists(file)
        lines.append(f"{name}: {versions(json_files.read(file)) if exists else '–'}")
    return page.bullets(lines, "environment.json of each workdir.")


def versions(environment: Mapping) -> str:
    """The content of an environment.json in one line."""
    packages = dict(environment)
    commit, devices = packages.pop("commit"), ", ".join(packages.pop("devices"))
    count = packages.pop("device_count")
    packages.pop("process_count")
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{count} x {devices}, at commit {commit or 'unknown'}, with {listed}"


def reconstructed(folder: str) -> tuple[dict[str, np.ndarray], str]:
    """`EXAMPLES` held-out pictures as `reconstruct` returns them, and their caption."""
    model = finished.from_run(folder)
    config = model.config
    held_out = sources.load(config, config.data.eval_split, evaluate=True)
    chosen = np.linspace(0, held_out.count - 1, EXAMPLES).astype(np.int64)
    target = reconstructions.target_of(model)
    shown = reconstructions.reconstruct(
        model, held_out.fetch(chosen), target, config.seed
    )
    hidden = f"{100 * config.mask_ratio:.0f} %"
    return shown, DRAWN.format(
        hidden=hidden, explained=reconstructions.EXPLAINED[target]
    )
