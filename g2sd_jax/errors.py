# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a user is told of a mistake, and how a process ends: nothing of jax in it."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# How a process ends; what starts runs (a launcher, Slurm, a cluster) reads these.
EXIT_DONE = 0
EXIT_MISTAKE = 2  # One line says what is wrong; the same command fails again.
EXIT_AGAIN = 75  # Asked to stop, and saved: the same command resumes.
EXIT_LOST = 76  # Another process of the run, or its data: as after a crash of its own.
EXIT_INTERRUPTED = 130  # Ctrl-C where there was nothing to save, or a second one.
MISTAKES = (ValueError, OSError, FloatingPointError)  # What that one line is made of.


class Hung(OSError):
    """What was waited for did not come, and the threads at it can not be ended."""


class Preempted(Exception):
    """The run was asked to leave, and has saved its state."""


def lookup(what: str, name: str, choices: Mapping[str, T]) -> T:
    """`choices[name]`, or a `ValueError` that lists the nearest names.

    Args:
        what: the key or option that has the name as its value.
        name: to look up.
        choices: by name.
    """
    if name in choices:
        return choices[name]
    hint = suggest(name, choices, f"known: {', '.join(map(str, choices))}")
    raise ValueError(f"{what}={name!r} is not known; {hint}")


def suggest(
    name: str, choices: Iterable[str], otherwise: str, cutoff: float = 0.5
) -> str:
    """Asks for the nearest of many names.

    Args:
        name: the name that was not found.
        choices: the names there are.
        otherwise: the hint where none of them is near.
        cutoff: likeness from 0 (anything) to 1 (equal) that counts as near.
    """
    choices = [str(choice) for choice in choices]
    nearest = difflib.get_close_matches(str(name), choices, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(nearest)}?" if nearest else otherwise


def one_of(what: str, value: str, allowed: Iterable[str]) -> str:
    """`value` itself if it is among `allowed`, else the error of `lookup`."""
    return lookup(what, value, {name: name for name in allowed})


def shorten_list(names: Iterable[str], most: int = 4, between: str = ", ") -> str:
    """The first names in sorted order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


# Control characters, line ends of Unicode, what turns the direction of writing, and the
# bytes of a file's name that are no UTF-8, which no stream could encode.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

IN_LINES = re.compile(rf"(?![\n\t]){CONTROL.pattern}")  # Of a message of some lines.


def printable(text: object, among: re.Pattern = CONTROL) -> str:
    """A text that may come from a stranger, without characters that command a terminal.

    Args:
        text: such as a file's name.
        among: the characters that are written as escapes, such as `\\x1b`.
    """
    escape = lambda match: match[0].encode("unicode_escape").decode("ascii")
    return among.sub(escape, str(text))


def require(config: Mapping, where: str, keys: Iterable[str], because: str) -> None:
    """Refuses a recipe that lacks keys which the value of another one asks for.

    Args:
        config: the group of keys, such as `config.optim`.
        where: its name, for the error.
        keys: what it must have.
        because: the choice that reads them, and where a recipe with them is found.
    """
    missing = [f"{where}.{key}" for key in keys if key not in config]
    if missing:
        raise ValueError(
            f"this recipe has no {', '.join(missing)}, which {because} reads; start "
            "from a recipe that has them, or add them to yours."
        )


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """A nested dict as `{"a.b": leaf}`, in sorted order."""
    flat = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
