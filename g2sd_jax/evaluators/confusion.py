# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices: counted over label maps of any size, scored, and tabulated."""

from collections.abc import Callable, Sequence

import numpy as np

from g2sd_jax import core, label_values

TAKEN_FOR = core.Column("taken_for", "most often taken for")
# What a table of classes shows: of pictures that have one class each, and of pixels.
OF_EXAMPLES = (
    core.Column("name", "class"),
    core.Column("count", "count"),
    core.Column("recall", "found", "%"),
    core.Column("precision", "right", "%"),
    core.Column("iou", "IoU", "%", printed=False),
    TAKEN_FOR,
)
OF_PIXELS = (
    core.Column("name", "class"),
    core.Column("share", "share", "%"),
    core.Column("iou", "IoU", "%"),
    core.Column("recall", "Acc", "%"),
    TAKEN_FOR,
)


def count_pixels(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] pixels by true class (row) and predicted class (column).

    Args:
        predicted: [H, W] class ids.
        truth: [H, W] class ids; `label_values.IGNORED` does not count.
        classes: C.
    """
    ignored = label_values.IGNORED
    counted = truth != ignored
    if counted.any() and truth[counted].max() >= classes:
        raise ValueError(
            f"a label map holds class {truth[counted].max()}, but config.data.classes="
            f"{classes} are numbered 0..{classes - 1} ({ignored} is ignored); correct "
            "config.data.classes, or the labels."
        )
    return count_pairs(predicted[counted], truth[counted], classes)


def count_pairs(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] counts by true class (row) and predicted class (column); none ignored.

    Args:
        predicted: [N] class ids.
        truth: [N] class ids.
        classes: C.
    """
    pairs = truth.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def evaluator(
    predict: Callable,
    batches: Callable,
    classes: int,
    answers: Callable,
    rate_unit: str = "images",
) -> core.Evaluator:
    """mIoU, mAcc, aAcc and the number of pixels, against label maps of any size.

    Args:
        predict: (variables, frozen, batch) -> outputs.
        batches: as `core.Evaluator` has it.
        classes: C.
        answers: (outputs, examples) -> pairs of [H, W] class ids, the predicted ones
            and the truth, each picture once.
        rate_unit: as `core.Evaluator` has it.
    """

    def start():
        return dict(confusion=np.zeros((classes, classes), np.int64))

    def update(state, outputs, examples):
        counts = state["confusion"].copy()
        for predicted, truth in answers(outputs, examples):
            counts += count_pixels(predicted, truth, classes)
        return dict(confusion=counts)

    def merge(states):
        return dict(confusion=sum(state["confusion"] for state in states))

    def finish(state):
        counts = state["confusion"]
        return {**scores(counts), "pixels": int(counts.sum())}

    # Of classes drawn at random, one with the share p of the pixels gets the IoU
    # p / (1 + (C - 1) p), and the mean is largest where all shares are 1 / C.
    chance = 100 / (2 * classes - 1)
    counting = dict(count="pixels", counted="pixels of held-out pictures")
    return core.Evaluator(
        batches=batches,
        predict=predict,
        start=start,
        update=update,
        merge=merge,
        finish=finish,
        scores=(
            core.Score("mIoU", "mIoU", chance=chance, **counting),
            core.Score("mAcc", "mAcc", chance=100 / classes, **counting),
            core.Score("aAcc", "aAcc", chance=100 / classes, **counting),
        ),
        tables=lambda state, names: pixel_tables(state["confusion"], names),
        rate_unit=rate_unit,
    )


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`iou` and `accuracy` [C] of each class in 0..1; NaN where it never occurs.

    Args:
        counts: [C, C] by true class (row) and predicted class (column).
    """
    hit = np.diag(counts).astype(np.float64)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = truth + predicted - hit
    ratio = lambda below: np.divide(
        hit, below, out=np.full(len(hit), np.nan), where=below > 0
    )
    return dict(iou=ratio(union), accuracy=ratio(truth))


def scores(counts: np.ndarray) -> dict[str, float]:
    """mIoU, mAcc and aAcc in %; means are over the classes that occur.

    Args:
        counts: [C, C] by true class (row) and predicted class (column).
    """

    def mean(values):
        occurring = values[~np.isnan(values)]
        return 100.0 * float(occurring.mean()) if len(occurring) else float("nan")

    ratios = per_class(counts)
    right = np.diag(counts).sum() / max(counts.sum(), 1)
    return {
        "mIoU": mean(ratios["iou"]),
        "mAcc": mean(ratios["accuracy"]),
        "aAcc": 100.0 * float(right),
    }


def example_tables(counts: np.ndarray, names: Sequence[str]) -> list[core.Table]:
    """The tables of a classifier: its classes, and what each is taken for.

    Args:
        counts: [C, C] examples by true class (row) and predicted class (column).
        names: of the classes, used if there are C.
    """
    rows = breakdown(counts, names)
    for row in rows:
        row["taken_for"] = (
            "{} ({})".format(*row["mistaken_for"]) if row["mistaken_for"] else ""
        )
    return [
        core.Table("classes", "class by class", rows, OF_EXAMPLES, worst="recall"),
        core.Table("confusion", "confusion, one row per true class", counts.tolist()),
    ]


def pixel_tables(counts: np.ndarray, names: Sequence[str]) -> list[core.Table]:
    """The tables of a segmentor: its classes, and what each is taken for.

    Args:
        counts: [C, C] pixels by true class (row) and predicted class (column).
        names: of the classes, used if there are C.
    """
    rows = breakdown(counts, names)
    for row in rows:
        row["taken_for"] = ""
        if row["mistaken_for"]:
            name, count = row["mistaken_for"]
            row["taken_for"] = f"{name} ({100 * count / row['count']:.1f} % of it)"
    title = "confusion, one row per true class in % of its pixels"
    return [
        core.Table("classes", "class by class", rows, OF_PIXELS, worst="iou"),
        core.Table("confusion", title, counts.tolist(), percent=True),
    ]


def breakdown(counts: np.ndarray, names: Sequence[str] = ()) -> list[dict]:
    """One row per class: how often it is found, and what it is taken for.

    Args:
        counts: [C, C] by true class (row) and predicted class (column).
        names: of the classes, used if there are C.
    Returns:
        Dicts of `class`, `name`, `count`, `share` of all that counts, `recall` (the
        Acc of segmentation), `precision`, `iou` in % (None where nothing was there to
        count) and `mistaken_for`, the most frequent wrong answer with its count, or
        None.
    """
    hit = np.diag(counts)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    wrong = counts - np.diag(hit)
    named = len(names) == len(counts)
    name_of = lambda label: str(names[label]) if named else str(label)
    percent = lambda part, total: 100.0 * float(part / total) if total else None
    rows: list[dict] = []
    for label in range(len(counts)):
        other = int(wrong[label].argmax())
        union = truth[label] + predicted[label] - hit[label]
        rows.append(
            {
                "class": label,
                "name": name_of(label),
                "count": int(truth[label]),
                "share": percent(truth[label], truth.sum()),
                "recall": percent(hit[label], truth[label]),
                "precision": percent(hit[label], predicted[label]),
                "iou": percent(hit[label], union),
                "mistaken_for": [name_of(other), int(wrong[label, other])]
                if wrong[label].any()
                else None,
            }
        )
    return rows
