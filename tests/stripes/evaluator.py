# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How far answers about stripes are off: in degrees and in cycles, less is better."""

from collections.abc import Callable, Sequence

import numpy as np

from g2sd_jax import core
from stripes import data

COLUMNS = (
    core.Column("name", "direction"),
    core.Column("count", "count"),
    core.Column("error", "off by", "deg"),
    core.Column("frequency_error", "off by", "cycles"),
)


def stripe_error(
    predict: Callable, batches: Callable, directions: int
) -> core.Evaluator:
    """Mean errors of direction and frequency, and a table by true direction.

    Args:
        predict: (variables, frozen, batch) -> `logits` [B, A] and `frequency` [B].
        batches: as `core.Evaluator` has it.
        directions: A.
    """

    def start():
        return {"truth": np.zeros((0, 2)), "answer": np.zeros((0, 2))}

    def update(state, outputs, examples):
        truth = np.array([example["stripe"] for example in examples]).reshape(-1, 2)
        degrees, frequency = read(outputs["logits"], outputs["frequency"])
        answer = np.stack([degrees, frequency], axis=1)[: len(examples)]
        new = {"truth": truth, "answer": answer}
        return {key: np.concatenate([state[key], new[key]]) for key in state}

    def merge(states):
        return {key: np.concatenate([s[key] for s in states]) for key in start()}

    def errors_of(state):
        truth, answer = state["truth"], state["answer"]
        off = data.angle_between(answer[:, 0], truth[:, 0])
        return off, np.abs(answer[:, 1] - truth[:, 1])

    def finish(state):
        count = len(state["truth"])
        off, frequency_off = errors_of(state)
        mean = lambda values: float(values.mean()) if count else float("nan")
        return {
            "error": mean(off),
            "frequency_error": mean(frequency_off),
            "count": count,
        }

    def tables(state, names: Sequence[str]):
        off, frequency_off = errors_of(state)
        rows = []
        for degrees in data.HALF_TURN * np.arange(directions) / directions:
            mine = data.angle_between(state["truth"][:, 0], degrees) < 1e-3
            mean = lambda values, mine=mine: (
                float(values[mine].mean()) if mine.any() else None
            )
            rows.append(
                dict(
                    name=f"{degrees:g} deg",
                    count=int(mine.sum()),
                    error=mean(off),
                    frequency_error=mean(frequency_off),
                )
            )
        return [
            core.Table(
                "directions",
                "direction by direction",
                rows,
                COLUMNS,
                worst="error",
                worst_is="highest",
            )
        ]

    every = data.HALF_TURN * np.arange(directions) / directions
    counting = dict(count="count", counted="held-out pictures")
    return core.Evaluator(
        batches=batches,
        predict=predict,
        start=start,
        update=update,
        merge=merge,
        finish=finish,
        scores=(
            core.Score(
                "error",
                "direction error",
                unit="deg",
                higher_is_better=False,
                chance=float(data.angle_between(every, 0.0).mean()),
                **counting,
            ),
            core.Score(
                "frequency_error",
                "frequency error",
                unit="cycles",
                higher_is_better=False,
                **counting,
            ),
        ),
        tables=tables,
    )


def read(logits: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(degrees [B], cycles [B]) that answers [B, A] and [B] stand for."""
    degrees = data.HALF_TURN * logits.argmax(axis=-1) / logits.shape[-1]
    return degrees, frequency
