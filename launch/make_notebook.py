# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a Markdown page as a notebook: python launch/make_notebook.py docs/tutorial.md

The page is the source; the notebook beside it is written anew, never edited.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)
MAGIC = {
    "python": "",
    "bash": "%%bash\n",
}  # Language of a block -> how its cell begins.


class Part(NamedTuple):
    """A stretch of a Markdown page."""

    language: str  # Of a fenced block, "" where it names none; "markdown" of the rest.
    text: str  # Without the fences.


def parts(markdown: str) -> list[Part]:
    """Splits a page into its fenced blocks and the text around them, in order."""
    stretches, end = [], 0
    for match in FENCED.finditer(markdown):
        stretches.append(Part("markdown", markdown[end : match.start()]))
        stretches.append(Part(match[1], match[2]))
        end = match.end()
    stretches.append(Part("markdown", markdown[end:]))
    return [part for part in stretches if part.text.strip()]


def notebook(markdown: str) -> dict:
    """The page as a notebook, format 4.5: blocks of Python and bash are code cells."""
    cells = []
    for part in parts(markdown):
        if part.language in MAGIC:
            code = dict(cell_type="code", execution_count=None, outputs=[])
            cells.append((code, MAGIC[part.language] + part.text.strip("\n")))
            continue
        text = part.text
        if part.language != "markdown":
            text = f"```{part.language}\n{text}```"
        if cells and cells[-1][0]["cell_type"] == "markdown":
            cells[-1] = cells[-1][0], f"{cells[-1][1]}\n\n{text.strip()}"
        else:
            cells.append((dict(cell_type="markdown"), text.strip()))
    return dict(
        cells=[
            dict(cell, id=f"cell-{i}", metadata={}, source=text.splitlines(True))
            for i, (cell, text) in enumerate(cells)
        ],
        metadata=dict(
            kernelspec=dict(display_name="Python 3", language="python", name="python3"),
            language_info=dict(name="python"),
        ),
        nbformat=4,
        nbformat_minor=5,
    )


def encode(markdown: str) -> str:
    """The text of the notebook file."""
    return json.dumps(notebook(markdown), indent=1, ensure_ascii=False) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", help="NAME.md; NAME.ipynb is written beside it")
    page = pathlib.Path(parser.parse_args(argv).page)
    text = encode(page.read_text(encoding="utf-8"))
    page.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
