# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class lists: which output of the model each class of a source is.

`config.data.class_list` is a text file, or `imagenet1k`: the WordNet ids of ImageNet-1k
in the order of all published models' outputs. A file has a class a line, in one of two
forms: every output of the model in order, `NAME`; or where each class of the source
goes, `NAME,OUTPUT`, so that several may share one. So a folder whose classes are 200
WordNet ids, as ImageNet-A and -R are published, is judged by a model of 1000 outputs;
its evaluation then chooses among those 200 alone, as published for both.
"""

import collections
import difflib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHIPPED = Path(__file__).parent / "class_lists"
LINE = re.compile(r"(?P<name>.+),\s*(?P<output>-?\d+)")


class Mapped(NamedTuple):
    """The classes of a source as outputs of the model."""

    labels: np.ndarray | None  # [n] int32, outputs
    names: tuple[str, ...]  # Of all C outputs, () where the list does not name them
    among: np.ndarray | None  # [c] the outputs that occur; None where all may be chosen


def mapped(config, names, labels, origin: str) -> Mapped:
    """Labels of a source as `config.data.class_list` maps them; as they are without it.

    Args:
        config: the whole recipe.
        names: of the source's classes, in label order.
        labels: [n] integers, the source's own, or None.
        origin: what an error calls the source.
    """
    if not config.data.class_list:
        return Mapped(labels, tuple(names), None)
    given, outputs = config.data.class_list, config.data.classes
    listed = read(given, outputs)
    if labels is None or not names:
        raise ValueError(
            f"config.data.class_list={given!r} maps names of classes, but {origin} has "
            "none; leave it empty."
        )
    occurring = np.unique(labels)
    if len(occurring) and not 0 <= occurring[0] <= occurring[-1] < len(names):
        raise ValueError(
            f"{origin} has labels {occurring[0]}..{occurring[-1]}, but {len(names)} "
            "classes."
        )
    unknown = [names[label] for label in occurring if names[label] not in listed]
    if unknown:
        near = difflib.get_close_matches(unknown[0], listed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"it begins {few(listed)}."
        raise ValueError(
            f"config.data.class_list={given!r} lacks {len(unknown)} of the "
            f"{len(occurring)} classes of {origin}: {few(unknown)}; {hint}"
        )
    table = np.array([listed.get(name, -1) for name in names], np.int32)
    among = np.unique(table[occurring])
    return Mapped(
        table[labels],
        tuple(sorted(listed, key=listed.get)) if each_once(listed, outputs) else (),
        None if len(among) == outputs else among,
    )


def example(label, among) -> dict:
    """What an evaluator is told of one example: its label, and what is chosen among."""
    return {"label": label} if among is None else {"label": label, "among": among}


def read(given: str, outputs: int) -> dict[str, int]:
    """{name: output} of a list, which has to fit a model of so many outputs."""
    where = f"config.data.class_list={given!r}"
    shipped = sorted(path.stem for path in SHIPPED.glob("*.txt"))
    path = SHIPPED / f"{given}.txt" if given in shipped else Path(given).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where} cannot be read ({error}); give a text file with a class a line, "
            f"or one of {', '.join(shipped)}."
        ) from error
    lines = [line.strip() for line in lines]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{where}: {path} is empty.")
    matches = [LINE.fullmatch(line) for line in lines]
    if all(matches):
        names = [match["name"].strip() for match in matches]
        targets = [int(match["output"]) for match in matches]
    elif any(matches):
        odd = lines[[bool(match) for match in matches].index(False)]
        raise ValueError(
            f"{where}: {odd!r} has no output behind a comma, as other lines do; either "
            "all lines have one, or none."
        )
    else:
        names, targets = lines, list(range(len(lines)))
        if len(names) != outputs:
            raise ValueError(
                f"{where} names {len(names)} classes in order, but config.data.classes="
                f"{outputs}; they have to be as many, or write NAME,OUTPUT."
            )
    twice = [name for name, times in collections.Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{where} has {few(twice)} more than once.")
    outside = [
        pair for pair in zip(names, targets, strict=True) if not 0 <= pair[1] < outputs
    ]
    if outside:
        raise ValueError(
            f"{where}: {outside[0][0]} goes to output {outside[0][1]}, but config.data."
            f"classes={outputs} has 0..{outputs - 1}."
        )
    return dict(zip(names, targets, strict=True))


def each_once(listed, outputs):
    return sorted(listed.values()) == list(range(outputs))


def few(names):
    names = list(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
