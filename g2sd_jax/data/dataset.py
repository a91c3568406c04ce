# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""`Dataset`, which every source of examples returns: random access to one split."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import classes as class_lists

FIRST = 8  # Examples of a stream that can be fetched, before any order is known.


class Objects(NamedTuple):
    """All objects of a split, known without reading a picture."""

    labels: np.ndarray  # [A] int32
    examples: np.ndarray  # [A] int64, the example each is in
    sides: np.ndarray  # [A, 2] width and height in pixels, as evaluation shows it


class Dataset(NamedTuple):
    """One split. Random access is what lets a run resume without reading what it skips.

    `fetch` gives examples as the training of an epoch sees them, for a crop that is
    made on the host is another one in every epoch, or as evaluation does where the
    epoch is None. It may put another example in the place of one that cannot be read,
    or mark it as not `valid`; then the batch has keys `index` and `valid`.
    """

    count: int
    classes: tuple[str, ...]  # Names in label order; () where there are none.
    fetch: Callable  # (indices [b] int64, epoch=None) -> dict of arrays [b, ...]
    original: Callable  # (index) -> dict, the un-batched example as evaluators judge it
    labels: np.ndarray | None = None  # [count] int32, where known without reading
    ahead: int = 0  # Batches to read before they are asked for.
    eval_crop: float = 1.0  # Share of a resized picture that evaluation sees.
    stream: Any = None  # Of files without random access: its batches, not `order`'s.
    notes: tuple[str, ...] = ()  # Lines to print before training, and in refusals.
    objects: Objects | None = None  # Where examples have several things of a class.
    describe: Mapping[str, Any] = {}  # What a checkpoint has to say of the source.


def metered(dataset: Dataset, around: Callable) -> Dataset:
    """Wraps the reading of a data set, in whichever threads it happens.

    Args:
        dataset: of random access, or with a stream.
        around: function -> a function that does as much, such as `feed.Meter.around`.
    """
    stream = dataset.stream and dataset.stream.around(around)
    return dataset._replace(fetch=around(dataset.fetch), stream=stream)


def in_memory(
    config: ConfigDict,
    image: np.ndarray,
    label: np.ndarray | None,
    classes: Sequence[str] = (),
    origin: str = "the data set",
) -> Dataset:
    """Makes a split of arrays.

    Args:
        config: the recipe.
        image: [N, H, W, C] uint8.
        label: [N] integers, or None for pictures without labels.
        classes: names in label order, () where there are none.
        origin: what an error calls these arrays.
    """
    arrays = {"image": image}
    mapped = class_lists.map_labels(config, classes, label, origin)
    label = mapped.labels
    if label is not None:
        check_labels(label, config.data.classes, origin)
        arrays["label"] = label.astype(np.int32)
    elif config.data.classes:
        raise ValueError(
            f"{origin} has no labels, but config.data.classes={config.data.classes}; "
            "pictures alone need --config.data.classes=0."
        )

    def rows(indices, epoch=None):
        return {name: array[indices] for name, array in arrays.items()}

    def original(index):
        example = rows(index)
        if label is None:
            return example
        return {
            **example,
            **class_lists.evaluation_label(example["label"], mapped.among),
        }

    return Dataset(len(image), mapped.names, rows, original, arrays.get("label"))


def fingerprint(dataset: Dataset) -> dict:
    """Values for JSON that two machines compare, to see whether examples agree."""
    # A stream can only be looked at where it begins.
    last = dataset.count if dataset.stream is None else min(dataset.count, FIRST)
    some = np.unique(np.linspace(0, last - 1, 5).astype(np.int64))
    digest = hashlib.sha256()
    for name, array in sorted(dataset.fetch(some).items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return dict(
        examples=dataset.count,
        classes=list(dataset.classes),
        sha256_of_five=digest.hexdigest(),
    )


def check_labels(label: np.ndarray, classes: int, origin: str) -> None:
    """Refuses labels that no head of `classes` outputs has; 0 classes use none."""
    wrong = np.flatnonzero((label < 0) | (label >= classes))
    if classes and len(wrong):
        raise ValueError(
            f"{origin}: {len(wrong)} of {len(label)} labels are outside "
            f"0..{classes - 1}, as config.data.classes={classes} demands; example "
            f"{wrong[0]} has {label[wrong[0]]}, the range is {label.min()}.."
            f"{label.max()}. Number the classes from 0, or correct config.data.classes."
        )
