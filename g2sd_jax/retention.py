# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run stay."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from g2sd_jax import core


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
        # What is not finite is no score: NaN would win or lose by its place in a row.
        score = lambda step: self.scores.get(step, {}).get(self.best, math.nan)
        judged = [step for step in steps if math.isfinite(score(step))]
        if judged:
            sign = 1 if self.best_is == "max" else -1
            # Of equals the first, so that it does not wander.
            kept.add(max(judged, key=lambda step: (sign * score(step), -step)))
        return [step in kept for step in steps]


def of(config, metrics: Sequence[str]) -> dict:
    """What `config.checkpoint` says of it; refuses a metric that nothing will tell.

    Args:
        config: the whole recipe.
        metrics: those that the stage's evaluators tell, such as `eval/top1`.
    """
    kept = {key: config.checkpoint[key] for key in ("keep", "best", "best_is")}
    core.one_of("config.checkpoint.best_is", kept["best_is"], ("max", "min"))
    if kept["best"] and not metrics:
        raise ValueError(
            f"config.checkpoint.best={kept['best']!r}: stage {config.stage} judges "
            "nothing as it is; leave it empty, or set config.signal.loss=true."
        )
    if kept["best"]:
        core.one_of("config.checkpoint.best", kept["best"], metrics)
    return kept
