# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Per-pixel confusion counts over label maps of any size, and the scores they give."""

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
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
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

    return core.Evaluator(batches, predict, start, update, merge, finish)


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
