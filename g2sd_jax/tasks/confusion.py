# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Confusion counts, of pixels over label maps of any size, and what they tell."""

import numpy as np

from g2sd_jax import core
from g2sd_jax.losses import cross_entropy

IGNORED = cross_entropy.IGNORED


def counts(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] pixels by true class (row) and predicted class (column).

    Args:
        predicted: [H, W] class ids.
        truth: [H, W] class ids; `IGNORED` does not count.
        classes: C.
    """
    known = truth != IGNORED
    if known.any() and truth[known].max() >= classes:
        raise ValueError(
            f"a label map holds class {truth[known].max()}, but config.data.classes="
            f"{classes} are numbered 0..{classes - 1} ({IGNORED} is ignored); correct "
            "config.data.classes, or the labels."
        )
    return table(predicted[known], truth[known], classes)


def table(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] counts by true class (row) and predicted class (column); none ignored."""
    pairs = truth.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def evaluator(predict, batches, classes: int, answers) -> core.Evaluator:
    """mIoU, mAcc, aAcc and their pixels, against label maps of any size.

    Args:
        predict: (variables, frozen, batch) -> outputs.
        batches: as `core.Evaluator` has it.
        classes: C.
        answers: (outputs, examples) -> pairs of [H, W] class ids, the predicted ones
            and the truth, each picture once.
    """

    def start():
        return dict(confusion=np.zeros((classes, classes), np.int64))

    def update(state, outputs, examples):
        confusion = state["confusion"].copy()
        for predicted, truth in answers(outputs, examples):
            confusion += counts(predicted, truth, classes)
        return dict(confusion=confusion)

    def merge(states):
        return dict(confusion=sum(state["confusion"] for state in states))

    def finish(state):
        judged = int(state["confusion"].sum())
        return {**scores(state["confusion"]), "pixels": judged}

    return core.Evaluator(
        batches,
        predict,
        start,
        update,
        merge,
        finish,
        confusion=lambda state: state["confusion"],
    )


def per_class(confusion) -> dict:
    """`iou` and `accuracy` [C] of each class in 0..1; NaN where it never occurs."""
    hit = np.diag(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union = truth + predicted - hit
    ratio = lambda below: np.divide(
        hit, below, out=np.full(len(hit), np.nan), where=below > 0
    )
    return dict(iou=ratio(union), accuracy=ratio(truth))


def scores(confusion) -> dict:
    """Percentages; means are over the classes that occur."""

    def mean(values):
        known = values[~np.isnan(values)]
        return 100.0 * float(known.mean()) if len(known) else float("nan")

    each = per_class(confusion)
    right = np.diag(confusion).sum() / max(confusion.sum(), 1)
    return {
        "mIoU": mean(each["iou"]),
        "mAcc": mean(each["accuracy"]),
        "aAcc": 100.0 * float(right),
    }


def breakdown(confusion: np.ndarray, names=()) -> list[dict]:
    """One row per class: how often it is found, and what it is taken for.

    Args:
        confusion: [C, C] counts by true class (row) and predicted class (column).
        names: of the classes, () where they have none.
    Returns:
        Dicts of `class`, `name`, `count`, `share` of all that counts, `recall` (the
        Acc of segmentation), `precision`, `iou` in % (None where nothing was there to
        count) and `mistaken_for`, the most frequent wrong answer with its count, or
        None.
    """
    hit = np.diag(confusion)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    wrong = confusion - np.diag(hit)
    named = lambda label: str(names[label]) if len(names) else str(label)
    share = lambda part, whole: 100.0 * float(part / whole) if whole else None
    rows = []
    for label in range(len(confusion)):
        other = int(wrong[label].argmax())
        rows.append(
            {
                "class": label,
                "name": named(label),
                "count": int(truth[label]),
                "share": share(truth[label], truth.sum()),
                "recall": share(hit[label], truth[label]),
                "precision": share(hit[label], predicted[label]),
                "iou": share(hit[label], truth[label] + predicted[label] - hit[label]),
                "mistaken_for": [named(other), int(wrong[label, other])]
                if wrong[label].any()
                else None,
            }
        )
    return rows
