# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A chain's results as Markdown and as one page."""

import os
from collections.abc import Mapping

import jinja2
import numpy as np
from matplotlib import figure
from ml_collections import ConfigDict

from g2sd_jax import core, finished, json_files, metrics
from g2sd_jax.measure import speed
from g2sd_jax.pages import page, plots, results_table, sections

SECONDS = "seconds.json"  # {step: seconds of training}, written by `tools.chain`.
CAPTION = (
    "Scores are {score} of {examples}: mean ± standard deviation over "
    "seeds {seeds}, then each seed. They were fixed beforehand; none was chosen by its "
    "result. Share: of the teacher's mean. Throughput: images/s of the jitted "
    "prediction, {batch} at a time, relative to the teacher's {speed}; the models took "
    "turns in one process, and the median of {turns} turns counts."
)
TOLD_APART = (
    "A difference counts as told apart if every seed agrees on its sign and its mean "
    "exceeds its standard deviation over the seeds."
)


def write(config: ConfigDict, folder: str, out: str = "") -> str:
    """Writes a chain's `report.md`, `report.html` and pictures; returns its table.

    Args:
        config: of the chain.
        folder: of the chain.
        out: the page, where it is not to be the folder's `report.html`.
    """
    rows, speeds = results_table.rows(config, folder)
    losses = {name: loss_curves(folder, config, name) for name, *_ in config.steps}
    units = dict.fromkeys(losses, "loss")
    sheets = dict(losses=plots.curves(losses, units))
    drawn = ""
    if config.reconstructions:
        run, *_ = finished.chain_runs(config, folder, config.reconstructions)
        shown, drawn = sections.reconstructed(run)
        sheets["reconstructions"] = plots.pictures(shown)
    for name, sheet in sheets.items():
        sheet.savefig(os.path.join(folder, f"{name}.png"))
    seconds = json_files.read_numbers(os.path.join(folder, SECONDS))
    teacher, *_ = finished.chain_runs(config, folder, config.rows[0][1])
    score = results_table.score_of(teacher)
    content = dict(
        title=config.title,
        note=config.note,
        table=results_table.table(rows, score),
        score=score,
        caption=CAPTION.format(
            score=score_words(score),
            examples=example_words(score, teacher),
            seeds=", ".join(map(str, config.seeds)),
            batch=speeds[0].batch,
            speed=f"{speeds[0].images_per_s:,.0f}",
            turns=speed.TURNS,
        ),
        effects=results_table.effects(rows, score),
        told_apart=TOLD_APART,
        drawn=drawn,
        steps=results_table.steps(config, folder, seconds),
        length=f"Together {sum(seconds.values()) / 60:.1f} minutes of training and "
        "evaluation, compiling included; what was killed without a chance to save is "
        "not counted.",
        environment=environment(folder),
    )
    text = markdown(content)
    write_text(os.path.join(folder, "report.md"), text)
    drawings = {name: {name: sheet} for name, sheet in sheets.items()}
    drawings["losses"] = plots.separate_curves(losses, units)
    html = page.html(config.title, chain_sections(config, folder, content, drawings))
    write_text(out or os.path.join(folder, "report.html"), html)
    return results_table.markdown(*content["table"])


def score_words(score: core.Score) -> str:
    """A score with its unit, and its direction where that is not the usual one."""
    unit = f" in {score.unit}" if score.unit else ""
    return f"{score.name}{unit}{'' if score.higher_is_better else ' (less is better)'}"


def example_words(score: core.Score, run: str) -> str:
    """How many items a run was scored on, and what those are.

    Args:
        score: of the run's task.
        run: its workdir.
    """
    if not score.count:
        return "the held-out examples"
    done = results_table.final_metrics(run)
    return f"{done[f'{speed.TASK}/{score.count}']:,} {score.counted}"


def markdown(content: Mapping) -> str:
    """The report of a chain as Markdown, its pictures beside it."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(page.TEMPLATES), undefined=jinja2.StrictUndefined
    )
    templates.filters["table"] = lambda table: results_table.markdown(*table)
    return templates.get_template("chain.md").render(**content) + "\n"


def chain_sections(
    config: ConfigDict,
    folder: str,
    content: Mapping,
    sheets: Mapping[str, Mapping[str, figure.Figure]],
) -> list[page.Section]:
    """The report of a chain as sections of a page, with the analysis and the configs.

    Args:
        config: of the chain.
        folder: of the chain.
        content: of the report, by name.
        sheets: its plots, by title, by name.
    """
    seeds = "seed*" if len(config.seeds) > 1 else f"seed{config.seeds[0]}"
    first = f"seed{config.seeds[0]}"
    names = [name for name, *_ in config.steps]
    runs = {name: finished.chain_runs(config, folder, name)[0] for name in names}
    score = content["score"]
    made = (
        f"Scores: {results_table.metric_name(score)} in {seeds}/STEP/DONE. Parameters: "
        f"counted in the checkpoints of {first}. Throughput: measured when this page "
        "was made."
    )
    return [
        page.Section(
            "Result",
            [page.table(*content["table"], made), page.text(content["caption"])],
        ),
        page.Section(
            "What each stage did",
            [
                page.bullets(
                    content["effects"], f"Computed from the {score.name} above."
                ),
                page.text(content["told_apart"]),
                page.text(content["note"]),
            ],
        ),
        page.Section(
            "Losses",
            [
                page.pictures(
                    [
                        (f"loss of every step of {step}", plots.svg(sheet))
                        for step, sheet in sheets["losses"].items()
                    ],
                    f"loss in {seeds}/STEP/metrics.jsonl",
                )
            ],
        ),
        *reconstruction_sections(config, content, sheets),
        *sections.analysis_sections(folder),
        page.Section(
            "How it was made",
            [
                page.table(
                    *content["steps"],
                    f"{first}/STEP/DONE and config.json, {SECONDS}.",
                ),
                page.text(
                    f"{content['length']} {content['environment']}.",
                    f"{SECONDS} and environment.json of the chain.",
                ),
            ],
        ),
        page.Section("Configs", sections.configs(runs)),
    ]


def reconstruction_sections(
    config: ConfigDict,
    content: Mapping,
    sheets: Mapping[str, Mapping[str, figure.Figure]],
) -> list[page.Section]:
    """What a masked autoencoder guesses; [] of a chain that names none.

    Args:
        config: of the chain.
        content: of the report, by name.
        sheets: its plots, by title, by name.
    """
    if not config.reconstructions:
        return []
    picture = page.picture(
        "original, visible patches, reconstruction",
        plots.png(sheets["reconstructions"]["reconstructions"]),
        f"Checkpoint of seed{config.seeds[0]}/{config.reconstructions}.",
    )
    title = "What the teacher makes of what it does not see"
    return [page.Section(title, [picture, page.text(content["drawn"])])]


def environment(folder: str) -> str:
    """One line on what the numbers depend on besides the configs."""
    versions = json_files.read(os.path.join(folder, "environment.json"))
    return f"Ran on {sections.versions(versions)}, {os.cpu_count()} cores"


def loss_curves(folder: str, config: ConfigDict, step: str) -> dict[str, np.ndarray]:
    """{seed: [logged, 2] step and loss} of one step."""
    curves = {}
    for run in finished.chain_runs(config, folder, step):
        rows = metrics.read_lines(os.path.join(run, "metrics.jsonl"))
        points = [(r["step"], r["loss"]) for r in rows if r.get("loss") is not None]
        seed = os.path.basename(os.path.dirname(run)).removeprefix("seed")
        curves[f"seed {seed}"] = np.array(points).reshape(-1, 2)
    return curves


def write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
