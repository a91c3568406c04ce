# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models timed side by side: in turns, in one process, so that all share the noise."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from g2sd_jax import core, finished

TASK = "eval"  # The name of the evaluator of a task.
# Every model predicts CALLS batches a turn, or as many as take LONGEST seconds; the
# median counts.
TURNS, CALLS, LONGEST = 15, 10, 0.5


class Speed(NamedTuple):
    """How fast one model predicts."""

    images_per_s: float
    relative: float  # to the first model of those timed together
    batch: int


def compare(models: Sequence[finished.Finished]) -> list[Speed]:
    """The speed of every model's own evaluation, the first one's being 1."""
    calls = [_call(model) for model in models]
    batches = np.array([[model.config.batch] for model in models])
    rates = throughput(calls) * batches
    relative = np.median(rates / rates[:1], axis=1)
    return [
        Speed(float(np.median(rate)), float(share), model.config.batch)
        for rate, share, model in zip(rates, relative, models, strict=True)
    ]


def _call(model: finished.Finished) -> Callable:
    """() -> the answers to one batch, which lies on the device."""
    evaluator = evaluator_of(model)
    batch, _ = next(iter(evaluator.batches()))
    arguments = (model.variables, model.frozen(evaluator), batch)
    variables, frozen, batch = jax.device_put(arguments)
    predict = jax.jit(evaluator.predict)
    return lambda: predict(variables, frozen, batch)


def evaluator_of(model: finished.Finished) -> core.Evaluator:
    """The evaluator of the task a run was trained for."""
    if TASK not in model.stage.evaluators:
        raise ValueError(
            f"{model.source} is a run of stage {model.config.stage}, which is trained "
            "for no task; name a fine-tuned or distilled run."
        )
    return model.stage.evaluators[TASK]


def score_of(model: finished.Finished) -> core.Score:
    """The score of the task a run was trained for."""
    score = evaluator_of(model).score
    if score is None:
        raise ValueError(
            f"{model.source} is a run of a task without a score, the one number that "
            "compares models; its evaluator has to name one."
        )
    return score


def throughput(
    predicts: Sequence[Callable], turns: int = TURNS, calls: int = CALLS
) -> np.ndarray:
    """[models, turns] calls per second."""
    counts = []
    for predict in predicts:
        jax.block_until_ready(predict())  # Compiled before the clock starts.
        counts.append(min(calls, max(1, round(LONGEST * calls_per_second(predict, 1)))))
    speeds = np.zeros((len(predicts), turns))
    for turn in range(turns):
        for i, predict in enumerate(predicts):
            speeds[i, turn] = calls_per_second(predict, counts[i])
    return speeds


def calls_per_second(predict: Callable, calls: int) -> float:
    """Times a number of calls in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        outputs = predict()
    jax.block_until_ready(outputs)
    return calls / (time.perf_counter() - began)
