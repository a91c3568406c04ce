# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reading the JSON files of a workdir, any of which a disk or a hand may damage."""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath


def read(path: str | os.PathLike, remedy: str = "") -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: of the file, also in a bucket.
        remedy: what to do about a damaged one, for the error.

    Raises:
        ValueError: it is empty, cut short, no JSON, or another value than an object.
        OSError: it can not be read at all.
    """
    content = epath.Path(path).read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if not content.strip() else f"no JSON: {error}"
        raise damaged(path, reason, remedy) from None
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else repr(value)[:40]
        raise damaged(path, f"an object was expected, not {kind}", remedy)
    return value


def read_numbers(path: str | os.PathLike, remedy: str = "") -> dict[str, float]:
    """Reads a file of named numbers; `null` stands for one that was not finite."""
    values = read(path, remedy)
    for name, value in values.items():
        if not is_number(value) and value is not None:
            reason = f"{name} is {repr(value)[:40]} and no number"
            raise damaged(path, reason, remedy)
    return values


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def other_kind(stored: Mapping, model: Mapping, prefix: str = "") -> str:
    """Names the first value of another kind of JSON than in a model; "" if none.

    Args:
        stored: nested values, as read.
        model: values that have the right kinds; None goes with any.
        prefix: of the names.
    """
    for key in sorted(stored.keys() & model.keys()):
        value, expected = stored[key], model[key]
        if value is None or expected is None:
            continue
        if _kind(value) != _kind(expected):
            return f"{prefix}{key} is {repr(value)[:40]} and not {_kind(expected)}"
        if isinstance(value, Mapping):
            reason = other_kind(value, expected, f"{prefix}{key}.")
            if reason:
                return reason
    return ""


def _kind(value: Any) -> str:
    """A number may be whole or not, or stand for true or false."""
    if isinstance(value, Mapping):
        return "a group of keys"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, tuple | list) else "a number"


def damaged(path: str | os.PathLike, reason: str, remedy: str = "") -> ValueError:
    """Makes the error of a damaged file: one line with its name."""
    return ValueError(f"{path} is damaged ({reason}){f'; {remedy}' * bool(remedy)}.")
