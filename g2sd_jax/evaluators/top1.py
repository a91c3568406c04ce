# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Top-1 and top-5 accuracy of a classifier."""

from collections.abc import Callable

import numpy as np

from g2sd_jax import core
from g2sd_jax.evaluators import confusion


def top1(predict: Callable, batches: Callable, classes: int) -> core.Evaluator:
    """Shares of examples whose label is the first, or among the first five, answers.

    The state keeps the answer to every example: little, and enough for a table.

    Args:
        predict: (variables, frozen, batch) -> `logits` [B, C].
        batches: as `core.Evaluator` has it.
        classes: C.
    """
    empty = dict(label=np.int32, first=np.int32, among5=bool)

    def start():
        return {key: np.zeros(0, dtype) for key, dtype in empty.items()}

    def update(state, outputs, examples):
        label = np.array([example["label"] for example in examples], np.int32)
        logits = outputs["logits"][: len(label)]
        if examples and "among" in examples[0]:  # Not all classes: `data/classes.py`.
            allowed = examples[0]["among"]
            elsewhere = np.full_like(logits, -np.inf)
            elsewhere[:, allowed] = logits[:, allowed]
            logits = elsewhere
        best = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
        among5 = (best == label[:, None]).any(axis=1)
        answers = dict(label=label, first=best[:, 0], among5=among5)
        return {key: np.concatenate([state[key], answers[key]]) for key in state}

    def merge(states):
        return {key: np.concatenate([s[key] for s in states]) for key in start()}

    def finish(state):
        count = len(state["label"])
        share = lambda hits: 100.0 * float(hits.mean()) if count else float("nan")
        return {
            "top1": share(state["first"] == state["label"]),
            "top5": share(state["among5"]),
            "count": count,
        }

    def tables(state, names):
        # A label of 255 is a class like any other here.
        counts = confusion.count_pairs(state["first"], state["label"], classes)
        return confusion.example_tables(counts, names)

    counting = dict(count="count", counted="held-out examples")
    chance = lambda guesses: 100 * min(1.0, guesses / classes)
    return core.Evaluator(
        batches=batches,
        predict=predict,
        start=start,
        update=update,
        merge=merge,
        finish=finish,
        scores=(
            core.Score("top1", "top-1", chance=chance(1), **counting),
            core.Score("top5", "top-5", chance=chance(5), **counting),
        ),
        tables=tables,
    )
