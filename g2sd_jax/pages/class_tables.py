# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's evaluation on a page: its tables, and pictures under their label maps."""

import glob
import os

from g2sd_jax import core, finished, json_files
from g2sd_jax.evaluators import tables
from g2sd_jax.pages import page

EVALUATION = "evaluation.json"  # What `g2sd evaluate --out` is asked for.


def drawn(name: str, workdir: str) -> list[page.Section]:
    """The pictures in a workdir that its kind of network has for a report."""
    sections = []
    for shown in finished.kind_of(workdir).pictures:
        files = sorted(glob.glob(shown.pattern, root_dir=workdir))[: shown.most]
        blocks = [
            page.picture(
                shown.alt,
                read(os.path.join(workdir, file)),
                shown.source.format(file=file),
            )
            for file in files
        ]
        if blocks:
            sections.append(page.Section(shown.title.format(name=name), blocks))
    return sections


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def class_tables(name: str, workdir: str) -> list[page.Section]:
    """The tables that `g2sd evaluate` left in the workdir, if it was asked.

    Args:
        name: of the run on the page.
        workdir: of the run.
    """
    path = os.path.join(workdir, EVALUATION)
    if not os.path.exists(path):
        return []
    evaluation = json_files.read(path)
    return [
        page.Section(f"{name}, {evaluator}: {table.title}", [page_table(table)])
        for evaluator, figures in evaluation["evaluators"].items()
        for table in tables.from_json(figures)
        if table.columns
    ]


def page_table(table: core.Table) -> dict:
    """A table of an evaluator as a block of a page."""
    header = [
        f"{column.name} ({column.unit})" if column.unit else column.name
        for column in table.columns
    ]
    cells = [
        [tables.cell(row.get(column.key)) for column in table.columns]
        for row in table.rows
    ]
    return page.table(header, cells, EVALUATION)
