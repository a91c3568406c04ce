# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How the code base is kept: figures that `test_house.py` bounds.

    python tests/house.py

prints them for this checkout, each with the places it counted.
"""

import ast
import collections
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "g2sd_jax"

# Words that say nothing of the value they name.
VAGUE = ("told", "said", "found", "held", "given", "kept", "seen", "known", "whole")
VAGUE += ("plain", "few", "own")
# What a task or a kind of model is called, asked for by name.
NAMES = "classification|segmentation|detection|vit|mae|segmentor|detector|probe"
KEYS = "taps|label_map|boxes|segments|top1|mIoU"
BY_NAME = re.compile(
    rf"""(==|!=|\bin\b)\s*\(?["']({NAMES}|{KEYS})["']|["']({KEYS})["']\s+(not\s)?in\b
    |\.task\s*(==|!=)|startswith\(["'](specific_|segment)|\bCONV_SEG\b
    |\[["']kind["']\]\s*(==|!=)|\(["']kind["']\)\s*(==|!=)""",
    re.VERBOSE,
)
ROOMS_OF_TASKS = ("tasks", "stages", "kinds")


class Place(NamedTuple):
    """One thing that was counted."""

    path: pathlib.Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text}"


def sources() -> list[pathlib.Path]:
    """All files of the package and the recipes."""
    return sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "configs").rglob("*.py"))


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of every assignment, loop variable and parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def vague_names(paths: Sequence[pathlib.Path]) -> tuple[list[Place], int]:
    """The bindings that say nothing, and the number of all."""
    places, total = [], 0
    for path in paths:
        for name, line in bindings(ast.parse(path.read_text(encoding="utf-8"))):
            total += 1
            if name.strip("_") in VAGUE:
                places.append(Place(path, line, name))
    return places, total


def annotated(function: ast.FunctionDef) -> bool:
    """Whether every parameter and the result say their types."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [each for each in (arguments.vararg, arguments.kwarg) if each]
    return all(each.annotation for each in named + starred) and bool(function.returns)


def public_functions(
    paths: Sequence[pathlib.Path],
) -> tuple[list[Place], list[Place]]:
    """(annotated, not annotated) public top-level functions."""
    done, missing = [], []
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                place = Place(path, node.lineno, node.name)
                (done if annotated(node) else missing).append(place)
    return done, missing


def verbs_that_import_verbs() -> list[Place]:
    """Imports of one file of tools/ by another."""
    places = []
    for path in sorted((PACKAGE / "tools").glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if re.search(r"g2sd_jax(\.| import )tools\b", line):
                places.append(Place(path, number, line.strip()))
    return places


def questions_by_name(paths: Sequence[pathlib.Path]) -> list[Place]:
    """Lines outside the rooms of tasks that ask which task or kind something is."""
    places = []
    for path in paths:
        if path.relative_to(ROOT).parts[1] in ROOMS_OF_TASKS:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = line.split("  #")[0]
            if BY_NAME.search(code):
                places.append(Place(path, number, line.strip()))
    return places


def main() -> None:
    """Prints every figure and what was counted."""
    verbose = "--all" in sys.argv
    vague, total = vague_names(sources())
    by_word = collections.Counter(place.text for place in vague)
    done, missing = public_functions(sorted(PACKAGE.rglob("*.py")))
    verbs = verbs_that_import_verbs()
    questions = questions_by_name(sorted(PACKAGE.rglob("*.py")))
    share = len(done) / (len(done) + len(missing))
    print(
        f"vague names: {len(vague)} of {total} bindings, "
        f"{1000 * len(vague) / total:.1f} per 1,000 ({dict(by_word)})"
    )
    print(f"annotated public functions: {share:.1%} of {len(done) + len(missing)}")
    print(f"verbs that import verbs: {len(verbs)}")
    print(f"questions by task or kind name: {len(questions)}")
    for place in verbs + questions + (vague + missing) * verbose:
        print(f"  {place}")


if __name__ == "__main__":
    main()
