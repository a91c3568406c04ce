# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What every source of examples hands over: random access to one split."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """One split. Random access is what lets a run resume without reading what it skips.

    A streaming pipeline replaces this and `order` together: it yields the same batches.
    """

    count: int
    classes: tuple[str, ...]  # Names in label order; () where there are none.
    fetch: Callable  # (indices [b] int64) -> dict of arrays [b, ...]
    original: Callable  # (index) -> dict, the un-batched example as evaluators judge it


def in_memory(config, image, label, classes=(), origin="the data set") -> Dataset:
    """A split held as arrays.

    Args:
        config: the whole recipe.
        image: [N, H, W, C] uint8.
        label: [N] integers, or None for pictures without labels.
        classes: names in label order, () where there are none.
        origin: what an error calls these arrays.
    """
    arrays = {"image": image}
    if label is not None:
        check_labels(label, config.data.classes, origin)
        arrays["label"] = label.astype(np.int32)
    elif config.data.classes:
        raise ValueError(
            f"{origin} has no labels, but config.data.classes={config.data.classes}; "
            "pictures alone need --config.data.classes=0."
        )

    def rows(indices):
        return {name: array[indices] for name, array in arrays.items()}

    return Dataset(len(image), tuple(classes), rows, rows)


def fingerprint(dataset: Dataset) -> dict:
    """Plain values by which two machines see whether they hold the same examples."""
    some = np.unique(np.linspace(0, dataset.count - 1, 5).astype(np.int64))
    digest = hashlib.sha256()
    for name, array in sorted(dataset.fetch(some).items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return dict(
        examples=dataset.count,
        classes=list(dataset.classes),
        sha256_of_five=digest.hexdigest(),
    )


def check_labels(label, classes, origin):
    """Refuses labels that no head of `classes` outputs has; 0 classes use none."""
    wrong = np.flatnonzero((label < 0) | (label >= classes))
    if classes and len(wrong):
        raise ValueError(
            f"{origin}: {len(wrong)} of {len(label)} labels are outside "
            f"0..{classes - 1}, as config.data.classes={classes} demands; example "
            f"{wrong[0]} has {label[wrong[0]]}, the range is {label.min()}.."
            f"{label.max()}. Number the classes from 0, or correct config.data.classes."
        )
