# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of evaluators: to a file of figures and back, and as lines of text."""

from collections.abc import Mapping, Sequence

from g2sd_jax import core

PRINTED = 20  # Rows, or sides of a matrix, that are printed; a file has all.
LEAST = 6  # Characters of a column of numbers: 100.00.


def to_json(tables: Sequence[core.Table]) -> dict:
    """The rows of every table by its key, and under `tables` how they are shown."""
    if not tables:
        return {}
    layouts = {}
    for table in tables:
        layout = table._asdict()
        del layout["key"], layout["rows"]
        layout["columns"] = [column._asdict() for column in table.columns]
        layouts[table.key] = layout
    return {**{table.key: table.rows for table in tables}, "tables": layouts}


def from_json(figures: Mapping) -> list[core.Table]:
    """The tables of one evaluator's figures, as `to_json` left them.

    Older files say nothing of how their rows are shown: every key is a column then.
    """
    if "tables" not in figures:
        return [
            core.Table(key, key, rows, [core.Column(name, name) for name in rows[0]])
            for key, rows in figures.items()
            if isinstance(rows, list) and rows and isinstance(rows[0], Mapping)
        ]
    tables = []
    for key, layout in figures["tables"].items():
        columns = [core.Column(**column) for column in layout["columns"]]
        layout = {**layout, "columns": columns}
        tables.append(core.Table(key=key, rows=figures[key], **layout))
    return tables


def cell(value: object) -> str:
    """A cell as text: fractions with two digits, a dash for what is not there."""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list | tuple):
        return " ".join(map(cell, value))
    return "–" if value is None else str(value)


def lines(tables: Sequence[core.Table]) -> list[str]:
    """The tables as lines to print; of long ones the worst rows, no large matrix."""
    several = sum(bool(table.columns) for table in tables) > 1
    printed = []
    for table in tables:
        if not table.columns:
            printed += matrix_lines(table)
            continue
        blank = [""] if not printed or printed[-1] else []
        title = [f"  {table.title}:"] if several else []
        printed += [*blank, *title, *column_lines(table), ""]
    return printed


def column_lines(table: core.Table) -> list[str]:
    """A table with columns; of many rows, the worst ones."""
    rows, note = table.rows, []
    if len(rows) > PRINTED and table.worst:
        counted = [row for row in rows if row[table.worst] is not None]
        highest = table.worst_is == "highest"
        rows = sorted(counted, key=lambda row: row[table.worst], reverse=highest)
        rows = rows[:PRINTED]
        note = [
            f"  (the {PRINTED} {table.worst_is} of {len(table.rows)} {table.key}; "
            "--out has all)"
        ]
    columns = [column for column in table.columns if column.printed]
    texts = []  # Column by column, the header on top.
    for i, column in enumerate(columns):
        header = f"{column.name} {column.unit}".strip()
        cells = [cell(row[column.key]) for row in rows]
        if any(isinstance(row[column.key], str) for row in rows):
            last = i == len(columns) - 1
            width = 0 if last else max(map(len, [header, *cells]))
            texts.append([f"{text:{width}}" for text in [header, *cells]])
        else:
            width = max(LEAST, *map(len, [header, *cells]))
            texts.append([f"{text:>{width}}" for text in [header, *cells]])
    return ["  " + "  ".join(line) for line in zip(*texts, strict=True)] + note


def matrix_lines(table: core.Table) -> list[str]:
    """A matrix of counts with numbered rows, if it is small enough to be read."""
    rows = table.rows
    if not rows or len(rows) > PRINTED:
        return []
    if table.percent:
        rows = [[round(100 * n / max(1, sum(row))) for n in row] for row in rows]
    width = 1 + max(len(str(value)) for row in rows for value in [*row, len(rows)])
    numbered = [
        f"  {number:>4}:" + "".join(f"{value:>{width}}" for value in row)
        for number, row in enumerate(rows)
    ]
    return [f"  {table.title}:", *numbered]
