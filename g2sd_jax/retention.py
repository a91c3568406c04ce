# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run stay."""

from typing import NamedTuple


class Retention(NamedTuple):
    """Which checkpoints stay: the newest, and the best by a metric; Orbax asks it."""

    keep: int | None  # None: all
    best: str  # "": none for being the best
    best_is: str  # max, min
    scores: dict  # step -> its evaluation, empty where there was none

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps if self.keep is None else steps[-self.keep :])
        judged = [step for step in steps if self.best in self.scores.get(step, {})]
        if judged:
            sign = 1 if self.best_is == "max" else -1
            # Of equals the first, so that it does not wander.
            kept.add(max(judged, key=lambda s: (sign * self.scores[s][self.best], -s)))
        return [step in kept for step in steps]
