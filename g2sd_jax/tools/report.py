# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One page of a chain, of one run, or of several side by side: `g2sd report WORKDIR…`.

Every number comes from the runs' own files (`DONE`, `config.json`, `metrics.jsonl`,
checkpoints, what `g2sd analyse` and `g2sd evaluate` wrote) or is measured here, and the
page says which; every sentence on the outcome is chosen by numbers.
"""

import os
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import cli, metrics, train
from g2sd_jax.tools import central, finished, page, plots, sections, speed

SECONDS = "seconds.json"  # {step: seconds of training}, kept by `tools.chain`.
CAPTION = (
    "Scores are {score} in % of {examples:,} {of}: mean ± standard deviation over "
    "seeds {seeds}, then each seed. They were fixed beforehand; none was chosen by its "
    "result. Share: of the teacher's mean. Throughput: images/s of the jitted "
    "prediction, {batch} at a time, relative to the teacher's {speed}; the models took "
    "turns in one process, and the median of {turns} turns counts."
)
TOLD_APART = (
    "A difference counts as told apart if every seed agrees on its sign and its mean "
    "exceeds its standard deviation over the seeds."
)


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("report")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--out", default="", help="default: report.html in the (first) folder"
    )
    args = parser.parse_args(argv)
    first = args.workdirs[0]
    out = args.out or os.path.join(first, "report.html")
    if os.path.exists(os.path.join(first, finished.CHAIN)) and len(args.workdirs) == 1:
        print(write(finished.chain_config(first), first, out))
    else:
        named, _ = finished.expand(args.workdirs)
        write_text(out, sections.of_runs(named))
    print(f"written to {out}")
    return 0


def write(config: ConfigDict, workdir: str, out: str = "") -> str:
    """Writes a chain's `report.md`, `report.html` and pictures; returns its table."""
    rows, speeds = central.rows(config, workdir)
    first = os.path.join(workdir, f"seed{config.seeds[0]}")
    drawn = sections.reconstructions(os.path.join(first, config.reconstructions))
    losses = {name: loss_curves(workdir, config, name) for name, *_ in config.steps}
    sheets = dict(
        losses=plots.curves(losses, dict.fromkeys(losses, "loss")),
        reconstructions=plots.pictures(drawn[0]),
    )
    for name, sheet in sheets.items():
        sheet.savefig(os.path.join(workdir, f"{name}.png"))
    seconds = central.read_json(os.path.join(workdir, SECONDS))
    judged = os.path.join(first, config.rows[0][1])
    score = central.score_of(judged)
    said = dict(
        title=config.title,
        note=config.note,
        table=central.table(rows, score),
        score=score,
        caption=CAPTION.format(
            score=score.name,
            examples=central.read_json(os.path.join(judged, train.DONE))[score.count],
            of=score.of,
            seeds=", ".join(map(str, config.seeds)),
            batch=speeds[0].batch,
            speed=f"{speeds[0].images_per_s:,.0f}",
            turns=speed.TURNS,
        ),
        effects=central.effects(rows),
        told_apart=TOLD_APART,
        drawn=drawn[1],
        steps=central.steps(config, workdir, seconds),
        length=f"Together {sum(seconds.values()) / 60:.1f} minutes of training and "
        "evaluation, compiling included; what was killed without a chance to save is "
        "not counted.",
        environment=environment(workdir),
    )
    text = markdown(said)
    write_text(os.path.join(workdir, "report.md"), text)
    html = page.html(config.title, chain_sections(config, workdir, said, sheets))
    write_text(out or os.path.join(workdir, "report.html"), html)
    return central.markdown(*said["table"])


def markdown(said: Mapping) -> str:
    """The report of a chain as Markdown, its pictures beside it."""
    kind = dict(undefined=jinja2.StrictUndefined)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(page.TEMPLATES), **kind
    )
    templates.filters["table"] = lambda table: central.markdown(*table)
    return templates.get_template("chain.md").render(**said) + "\n"


def chain_sections(config, workdir, said, sheets) -> list[page.Section]:
    """The same as sections of a page, with the analysis and the configs."""
    seeds = "seed*" if len(config.seeds) > 1 else f"seed{config.seeds[0]}"
    first = f"seed{config.seeds[0]}"
    names = [name for name, *_ in config.steps]
    runs = {name: os.path.join(workdir, first, name) for name in names}
    score = said["score"]
    made = (
        f"Scores: {score.key} in {seeds}/STEP/DONE. Parameters: counted in the "
        f"checkpoints of {first}. Throughput: measured when this page was made."
    )
    return [
        page.Section(
            "Result",
            [page.table(*said["table"], made), page.text(said["caption"])],
        ),
        page.Section(
            "What each stage did",
            [
                page.bullets(said["effects"], f"Computed from the {score.name} above."),
                page.text(said["told_apart"]),
                page.text(said["note"]),
            ],
        ),
        page.Section(
            "Losses",
            [
                page.picture(
                    "loss of every step",
                    plots.svg(sheets["losses"]),
                    f"loss in {seeds}/STEP/metrics.jsonl",
                )
            ],
        ),
        page.Section(
            "What the teacher makes of what it does not see",
            [
                page.picture(
                    "original, visible patches, reconstruction",
                    plots.png(sheets["reconstructions"]),
                    f"Checkpoint of {first}/{config.reconstructions}.",
                ),
                page.text(said["drawn"]),
            ],
        ),
        *sections.analysis_sections(workdir),
        page.Section(
            "How it was made",
            [
                page.table(
                    *said["steps"],
                    f"{first}/STEP/DONE and config.json, {SECONDS}.",
                ),
                page.text(
                    f"{said['length']} {said['environment']}.",
                    f"{SECONDS} and environment.json of the chain.",
                ),
            ],
        ),
        page.Section("Configs", sections.configs(runs)),
    ]


def environment(workdir: str) -> str:
    """One line on what the numbers depend on besides the configs."""
    found = central.read_json(os.path.join(workdir, "environment.json"))
    return f"Ran on {sections.versions(found)}, {os.cpu_count()} cores"


def loss_curves(workdir: str, config: ConfigDict, step: str) -> dict[str, np.ndarray]:
    """{seed: [logged, 2] step and loss} of one step."""
    curves = {}
    for seed in config.seeds:
        path = os.path.join(workdir, f"seed{seed}", step, "metrics.jsonl")
        told = [row for row in metrics.read_lines(path) if row.get("loss") is not None]
        points = [(row["step"], row["loss"]) for row in told]
        curves[f"seed {seed}"] = np.array(points).reshape(-1, 2)
    return curves


def write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
