# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What every source of picture files hands over: random access to undecoded bytes."""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Encoded(NamedTuple):
    """One split of picture files: random access to their undecoded bytes.

    A folder, a tar and a packed copy differ in `read` alone; `pipeline.dataset` makes
    batches of any of them. Nothing here knows of a task but `labels`, which a task with
    annotations of its own leaves None.
    """

    count: int
    classes: tuple[str, ...]  # Names in label order; () where there are none.
    labels: np.ndarray | None  # [count] int32, known without decoding.
    read: Callable[[int], bytes]  # Called by many threads; may raise OSError.
    name: Callable[[int], str]  # For errors and the list of bad examples.
    origin: str  # What an error calls the whole.


def check_names(names, origin) -> None:
    """Refuses class names that a reader, or another file system, takes for one.

    Args:
        names: of the classes.
        origin: what an error calls their source.
    """
    alike = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold().strip()
        alike.setdefault(key, []).append(name)
    for same in alike.values():
        if len(same) > 1:
            raise ValueError(
                f"{origin} has classes that differ in spelling only: "
                f"{', '.join(map(repr, same))}; join them, or rename all but one."
            )
