# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a page says of a run's judgement: class by class, and drawn over pictures."""

import glob
import os

from g2sd_jax import recipes, summary
from g2sd_jax.tools import central, overlay, page

EVALUATION = "evaluation.json"  # What `g2sd evaluate --out` is asked for.
OVERLAYS = 8  # That are shown.
# Columns of the table of classes, of pictures and of pixels: the keys of their rows.
EXAMPLES = {"count": "count", "found (%)": "recall", "right (%)": "precision"}
EXAMPLES["IoU (%)"] = "iou"
PIXELS = {"share (%)": "share", "IoU (%)": "iou", "Acc (%)": "recall"}


def drawn(name: str, workdir: str) -> list[page.Section]:
    """The first batch under its label maps, and overlays of `g2sd predict`, if any."""
    if "taps" not in recipes.of_run(workdir).model:
        return []
    sections, first = [], os.path.join(workdir, summary.PICTURE)
    if os.path.exists(first):
        told = f"{summary.PICTURE}, which the run left at its start."
        picture = page.picture("pictures and their labels", read(first), told)
        sections.append(page.Section(f"What {name} learned from first", [picture]))
    pattern = os.path.join(workdir, overlay.FOLDER, f"*.{overlay.ENDINGS['drawn']}")
    found = sorted(glob.glob(pattern))[:OVERLAYS]
    if found:
        told = lambda path: f"{overlay.FOLDER}/{os.path.basename(path)}."
        pictures = [
            page.picture("an overlay", read(path), told(path)) for path in found
        ]
        sections.append(page.Section(f"What {name} sees", pictures))
    return sections


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def class_tables(name: str, workdir: str) -> list[page.Section]:
    """What `g2sd evaluate` found class by class, if it was asked."""
    path = os.path.join(workdir, EVALUATION)
    if not os.path.exists(path):
        return []
    sections = []
    for judge, found in central.read_json(path)["evaluators"].items():
        if "classes" not in found:
            continue
        columns = PIXELS if "mIoU" in found["metrics"] else EXAMPLES
        rows = [
            [
                row["name"],
                *(cell(row.get(key)) for key in columns.values()),
                "{} ({})".format(*row["mistaken_for"]) if row["mistaken_for"] else "",
            ]
            for row in found["classes"]
        ]
        header = ["class", *columns]
        table = page.table([*header, "most often taken for"], rows, EVALUATION)
        sections.append(page.Section(f"{name}, {judge}: class by class", [table]))
    return sections


def cell(value: float | int | None) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "–" if value is None else str(value)
