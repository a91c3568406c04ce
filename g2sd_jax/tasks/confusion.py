# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Confusion counts, of pixels over label maps of any size, and what they tell."""

import numpy as np
from PIL import Image

from g2sd_jax import core

IGNORED = 255


def counts(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] pixels by true class (row) and predicted class (column).

    Args:
        predicted: [H, W] class ids.
        truth: [H, W] class ids; `IGNORED` does not count.
        classes: C.
    """
    known = truth != IGNORED
    return table(predicted[known], truth[known], classes)


def table(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] counts by true class (row) and predicted class (column); none ignored."""
    pairs = truth.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def evaluator(predict, batches, classes: int) -> core.Evaluator:
    """mIoU, mAcc and aAcc against each example's own label map, at its own size.

    Args:
        predict: (variables, frozen, batch) -> {"label_map": [B, h, w]}, at one size.
        batches: as `core.Evaluator` has it; examples hold `label_map` [H, W].
        classes: C.
    """

    def start():
        return dict(confusion=np.zeros((classes, classes), np.int64))

    def update(state, outputs, examples):
        confusion = state["confusion"].copy()
        # An example padding the batch has no original, so it is never reached.
        for predicted, example in zip(outputs["label_map"], examples, strict=False):
            truth = example["label_map"]
            image = Image.fromarray(predicted.astype(np.uint8))
            size = truth.shape[::-1]
            resized = np.asarray(image.resize(size, Image.Resampling.NEAREST))
            confusion += counts(resized, truth, classes)
        return dict(confusion=confusion)

    def merge(states):
        return dict(confusion=sum(state["confusion"] for state in states))

    def finish(state):
        return scores(state["confusion"])

    return core.Evaluator(
        batches,
        predict,
        start,
        update,
        merge,
        finish,
        confusion=lambda state: state["confusion"],
    )


def scores(confusion: np.ndarray) -> dict:
    """Percentages over the classes that occur (in the truth or in the prediction)."""
    hit = np.diag(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union = truth + predicted - hit
    return {
        "mIoU": 100.0 * float(np.mean(hit[union > 0] / union[union > 0])),
        "mAcc": 100.0 * float(np.mean(hit[truth > 0] / truth[truth > 0])),
        "aAcc": 100.0 * float(hit.sum() / max(confusion.sum(), 1)),
    }


def per_class(confusion: np.ndarray, names=()) -> list[dict]:
    """One row per class: how often it is found, and what it is taken for.

    Args:
        confusion: [C, C] counts by true class (row) and predicted class (column).
        names: of the classes, () where they have none.
    Returns:
        Dicts of `class`, `name`, `count`, `recall`, `precision`, `iou` in % (None
        where nothing was there to count) and `mistaken_for`, the most frequent wrong
        answer with its count, or None.
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
                "recall": share(hit[label], truth[label]),
                "precision": share(hit[label], predicted[label]),
                "iou": share(hit[label], truth[label] + predicted[label] - hit[label]),
                "mistaken_for": [named(other), int(wrong[label, other])]
                if wrong[label].any()
                else None,
            }
        )
    return rows
