# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""`Encoded`: the undecoded picture files of one split, with random access."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from g2sd_jax.data import reading


class Encoded(NamedTuple):
    """One split of picture files: random access to their undecoded bytes.

    A folder, a tar and a packed copy differ in places and reader alone;
    `pipeline.dataset` makes batches of any of them. `labels` serves classification; a
    task with annotations of its own leaves it None.
    """

    count: int
    classes: tuple[str, ...]  # Names in label order; () where there are none.
    labels: np.ndarray | None  # [count] int32, known without decoding.
    places: Sequence[Any]  # [count], where the reader finds each.
    reader: reading.Reader
    name: Callable[[int], str]  # For errors and the list of bad examples.
    origin: str  # What an error calls the split.
    notes: tuple[str, ...] = ()  # Lines to print: what was passed over, and why.

    def read(self, index: int) -> bytes:
        """The bytes of one example; many threads may call it. May raise OSError."""
        return self.reader.read(self.places[index])


def check_names(names: Iterable[str], origin: str) -> None:
    """Refuses class names that a reader, or another file system, takes for one.

    Args:
        names: of the classes.
        origin: what an error calls their source.
    """
    spellings = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold().strip()
        spellings.setdefault(key, []).append(name)
    for alike in spellings.values():
        if len(alike) > 1:
            raise ValueError(
                f"{origin} has classes that differ in spelling only: "
                f"{', '.join(map(repr, alike))}; join them, or rename all but one."
            )
