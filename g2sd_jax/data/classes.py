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
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors

SHIPPED = Path(__file__).parent / "class_lists"
LINE = re.compile(r"(?P<name>.+),\s*(?P<output>-?\d+)")


class MappedLabels(NamedTuple):
    """The classes of a source as outputs of the model."""

    labels: np.ndarray | None  # [n] int32 outputs
    names: tuple[str, ...]  # Of all C outputs; () where the list does not name them.
    among: np.ndarray | None  # [c] outputs that occur; None where all may be chosen


def map_labels(
    config: ConfigDict,
    names: Sequence[str],
    labels: np.ndarray | None,
    origin: str,
) -> MappedLabels:
    """Maps a source's labels to outputs of the model by `config.data.class_list`.

    Without a class list the labels stay as they are.

    Args:
        config: the recipe.
        names: of the source's classes, in label order.
        labels: [n] integers, numbers of those classes, or None.
        origin: what an error calls the source.
    """
    class_list, outputs = config.data.class_list, config.data.classes
    if not class_list:
        return MappedLabels(labels, tuple(names), None)
    output_of = read(class_list, outputs)
    if labels is None or not names:
        raise ValueError(
            f"config.data.class_list={class_list!r} maps names of classes, but "
            f"{origin} has none; leave it empty."
        )
    occurring = np.unique(labels)
    if len(occurring) and not 0 <= occurring[0] <= occurring[-1] < len(names):
        raise ValueError(
            f"{origin} has labels {occurring[0]}..{occurring[-1]}, but {len(names)} "
            "classes."
        )
    missing = [names[label] for label in occurring if names[label] not in output_of]
    if missing:
        beginning = f"it begins {', '.join(list(output_of)[:3])}."
        raise ValueError(
            f"config.data.class_list={class_list!r} lacks {len(missing)} of the "
            f"{len(occurring)} classes of {origin}: "
            f"{errors.shorten_list(missing, most=3)}; "
            f"{errors.suggest(missing[0], output_of, beginning)}"
        )
    table = np.array([output_of.get(name, -1) for name in names], np.int32)
    among = np.unique(table[occurring])
    return MappedLabels(
        labels=table[labels],
        names=output_names(output_of, outputs),
        among=None if len(among) == outputs else among,
    )


def evaluation_label(label: int, among: np.ndarray | None) -> dict:
    """An example for an evaluator: its label, and the outputs it is chosen among."""
    return {"label": label} if among is None else {"label": label, "among": among}


def count_outputs(class_list: str) -> int:
    """The number of outputs that a class list numbers or names."""
    return max(read(class_list).values()) + 1


def read(class_list: str, outputs: int | None = None) -> dict[str, int]:
    """Reads a class list for a model of `outputs` outputs.

    Args:
        class_list: a path, or the name of a list that is shipped.
        outputs: of the model; no line may go beyond them. None: as many as it takes.

    Returns:
        {name: output}, in the order of the lines.
    """
    where = f"config.data.class_list={class_list!r}"
    shipped = sorted(path.stem for path in SHIPPED.glob("*.txt"))
    path = Path(class_list)
    if class_list in shipped:
        path = SHIPPED / f"{class_list}.txt"
    try:
        # Editors of Windows begin a file with a byte-order mark, which is no text.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where} cannot be read ({error}); give a text file (UTF-8) with a class "
            f"a line, or one of {', '.join(shipped)}."
        ) from error
    lines = [errors.printable(line.strip()) for line in lines]
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
        if outputs not in (None, len(names)):
            raise ValueError(
                f"{where} names {len(names)} classes in order, but config.data.classes="
                f"{outputs}; they have to be as many, or write NAME,OUTPUT."
            )
    twice = [name for name, times in collections.Counter(names).items() if times > 1]
    if twice:
        raise ValueError(
            f"{where} has {errors.shorten_list(twice, most=3)} more than once."
        )
    outside = [
        pair
        for pair in zip(names, targets, strict=True)
        if pair[1] < 0 or (outputs is not None and pair[1] >= outputs)
    ]
    if outside:
        numbers = "outputs are numbered from 0"
        if outputs is not None:
            numbers = f"config.data.classes={outputs} has 0..{outputs - 1}"
        raise ValueError(
            f"{where}: {outside[0][0]} goes to output {outside[0][1]}, but {numbers}."
        )
    return dict(zip(names, targets, strict=True))


def output_names(output_of: Mapping[str, int], outputs: int) -> tuple[str, ...]:
    """The names of all outputs in order; () unless each output has exactly one."""
    if sorted(output_of.values()) != list(range(outputs)):
        return ()
    return tuple(sorted(output_of, key=output_of.get))
