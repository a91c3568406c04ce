# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a page says of runs: their figures, curves, pictures, configs, machines."""

import json
import os
from collections.abc import Mapping

import numpy as np

from g2sd_jax import core, metrics, recipes, train
from g2sd_jax.data import source
from g2sd_jax.tools import (
    analyse,
    central,
    finished,
    judged,
    page,
    plots,
    reconstruct,
)

EXAMPLES = 8  # Images whose reconstruction is drawn.
DRAWN = (
    "Held-out images, {hidden} of the patches hidden (blue). Visible patches are "
    "pasted back. The model was {explained}."
)


def of_runs(named: Mapping[str, str]) -> str:
    """The page of one run, or of several side by side.

    Args:
        named: {what the page calls it: workdir}.
    """
    title = "Run " + next(iter(named)) if len(named) == 1 else "Runs side by side"
    read = {name: rows_of(path) for name, path in named.items()}
    sections = [
        page.Section("Runs", [summary(named, read)]),
        *curve_sections(read),
        *differences(named),
    ]
    for name, path in named.items():
        sections += judged.drawn(name, path) + picture_sections(name, path)
        sections += judged.class_tables(name, path)
        sections += analysis_sections(path) + speed_sections(path)
    sections.append(page.Section("Environment", [environments(named)]))
    sections.append(page.Section("Configs", configs(named)))
    return page.html(title, sections)


def rows_of(workdir: str) -> list[dict]:
    """The rows of a run's metrics.jsonl; [] of a run that logged nothing yet."""
    recipes.of_run(workdir)  # Refuses what is no run.
    path = os.path.join(workdir, "metrics.jsonl")
    return metrics.read_lines(path) if os.path.exists(path) else []


def summary(named, read) -> dict:
    """Stage, length and last figures of every run."""
    ends = {}
    for name, path in named.items():
        done = os.path.join(path, train.DONE)
        finals = central.read_json(done) if os.path.exists(done) else None
        last = {key: value for row in read[name] for key, value in row.items()}
        ends[name] = finals or {
            key: value
            for key, value in last.items()
            if key == "step" or key.startswith("loss") or "/" in key
        }
    scores = sorted({key for end in ends.values() for key in end} - {"step"})
    rows = []
    for name, path in named.items():
        config, end = recipes.of_run(path), ends[name]
        state = "done" if os.path.exists(os.path.join(path, train.DONE)) else "not done"
        rows.append(
            [
                name,
                config.stage,
                config.seed,
                end.get("step", 0),
                state,
                *(figure(end.get(key)) for key in scores),
            ]
        )
    header = ["run", "stage", "seed", "steps", "state", *scores]
    return page.table(
        header, rows, "DONE of each workdir; of a run not done, metrics.jsonl."
    )


def figure(value) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def curve_sections(read) -> list[page.Section]:
    """Plots of everything that was logged: losses, judgements, the machine."""
    keys = sorted({key for rows in read.values() for row in rows for key in row})
    keys.remove("step") if "step" in keys else None
    groups = {"Losses": [], "Evaluation": [], "Optimisation and machine": []}
    for key in keys:
        score = "/" in key and not key.startswith("loss")
        group = "Losses" if key.startswith("loss") else "Evaluation" if score else None
        groups[group or "Optimisation and machine"].append(key)
    sections = []
    for title, chosen in groups.items():
        drawn = {
            key: curve_of(read, key)
            for key in chosen
            if not key.endswith(("/count", "/pixels"))
        }
        if drawn:
            sheet = plots.curves(drawn, {key: unit(key) for key in drawn})
            told = f"metrics.jsonl of {', '.join(read)}."
            picture = page.picture(", ".join(drawn), plots.svg(sheet), told)
            sections.append(page.Section(title, [picture]))
    return sections


def curve_of(read, key: str) -> dict[str, np.ndarray]:
    """{run: [points, 2] step and value}, of the runs that logged `key`."""
    curves = {}
    for name, rows in read.items():
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            curves[name] = np.array(points)
    return curves


def unit(key: str) -> str:
    leaf = key.rpartition("/")[2]
    if key.startswith("loss") or leaf == "loss":
        return "loss"
    if leaf in ("top1", "top5", "mIoU", "mAcc", "aAcc"):
        return f"{leaf} (%)"
    return plots.UNITS.get(key, leaf)


def differences(named) -> list[page.Section]:
    """The keys in which the runs' configs differ."""
    flat = {
        name: core.flatten(recipes.of_run(path).to_dict())
        for name, path in named.items()
    }
    keys = sorted({key for each in flat.values() for key in each})
    value = lambda each, key: str(each[key]) if key in each else "absent"
    rows = [
        [f"`{key}`", *(value(each, key) for each in flat.values())]
        for key in keys
        if len({value(each, key) for each in flat.values()}) > 1
    ]
    if not rows:
        return []
    table = page.table(["key", *named], rows, "config.json of each workdir.")
    return [page.Section("Where the configs differ", [table])]


def picture_sections(name: str, workdir: str) -> list[page.Section]:
    """What a run that predicts pixels makes of held-out pictures."""
    if not os.path.isdir(os.path.join(workdir, "checkpoints")):
        return []
    config = recipes.of_run(workdir)
    if "target" not in config:
        return []
    shown, told = reconstructions(workdir)
    picture = page.picture(
        "original, visible, reconstruction",
        plots.png(plots.pictures(shown)),
        f"Checkpoint of {workdir}.",
    )
    return [page.Section(f"What {name} guesses", [picture, page.text(told)])]


def analysis_of(workdir: str) -> tuple[dict, str]:
    """What `g2sd analyse` found, {} if it was not asked, and where that was."""
    path = os.path.join(workdir, analyse.FILE)
    if not os.path.exists(path):
        return {}, ""
    found = central.read_json(path)
    models = [os.path.relpath(each["workdir"], workdir) for each in found["models"]]
    made = f"{analyse.FILE}, of {', '.join(models)}, made on "
    return found, f"{made}{versions(found['environment'])}."


def analysis_sections(workdir: str) -> list[page.Section]:
    """Occlusion and CKA."""
    found, made = analysis_of(workdir)
    sections = []
    if "occlusion" in found:
        part = found["occlusion"]
        told = (
            f"Accuracy on {part['examples']:,} pictures while more and more of the "
            f"{part['patches']} patches take the data set's mean colour. Salient "
            f"patches are those that count most for the answer of "
            f"{part['reference']}, by gradient times input; all models lose the same."
        )
        picture = page.picture("occlusion", plots.svg(plots.occlusion(part)), made)
        sections.append(
            page.Section("When patches are hidden", [page.text(told), picture])
        )
    if "cka" in found:
        part = found["cka"]
        token = {"patches": "mean over the patches", "class": "class token"}
        told = (
            f"Linear CKA of the {token[part['token']]} after every block, of "
            f"{part['examples']:,} pictures, against the blocks of "
            f"{part['reference']}. Above each map: about what unrelated features of "
            "these widths would give."
        )
        picture = page.picture("CKA", plots.svg(plots.cka(part)), made)
        sections.append(
            page.Section("How alike the blocks see", [page.text(told), picture])
        )
    return sections


def speed_sections(workdir: str) -> list[page.Section]:
    """Parameters and throughput, which a chain's own table has already."""
    found, made = analysis_of(workdir)
    if "throughput" not in found:
        return []
    rows = [
        [
            model["name"],
            f"{model['params']:,}",
            f"{found['throughput'][model['name']]['images_per_s']:,.0f}",
            f"{found['throughput'][model['name']]['relative']:.2f}x",
        ]
        for model in found["models"]
    ]
    header = ["model", "parameters", "images/s", "relative"]
    return [page.Section("Size and speed", [page.table(header, rows, made)])]


def configs(named: Mapping[str, str]) -> list[dict]:
    """Every run's whole config, folded."""
    return [
        page.hidden(
            name, json.dumps(recipes.of_run(path).to_dict(), indent=1, sort_keys=True)
        )
        for name, path in named.items()
    ]


def environments(named) -> dict:
    """What every run started on."""
    rows = []
    for name, path in named.items():
        file = os.path.join(path, "environment.json")
        told = versions(central.read_json(file)) if os.path.exists(file) else "–"
        rows.append([name, told])
    return page.table(["run", "ran on"], rows, "environment.json of each workdir.")


def versions(found: Mapping) -> str:
    found = dict(found)
    commit, devices = found.pop("commit"), ", ".join(found.pop("devices"))
    count = found.pop("device_count")
    found.pop("process_count")
    packages = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"{count} x {devices}, at commit {commit or 'unknown'}, with {packages}"


def reconstructions(workdir: str) -> tuple[dict[str, np.ndarray], str]:
    """`EXAMPLES` held-out pictures as `reconstruct` gives them, and what they are."""
    model = finished.from_run(workdir)
    config = model.config
    held_out = source.load(config, config.data.eval_split, evaluate=True)
    chosen = np.linspace(0, held_out.count - 1, EXAMPLES).astype(np.int64)
    target = reconstruct.target_of(model)
    shown = reconstruct.reconstruct(model, held_out.fetch(chosen), target, config.seed)
    hidden = f"{100 * config.mask_ratio:.0f} %"
    return shown, DRAWN.format(hidden=hidden, explained=reconstruct.EXPLAINED[target])
