# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every evaluator of a stage over its examples: on a mesh, and on all hosts."""

from collections.abc import Callable

import jax

from g2sd_jax import core, parallel


def judge_of(stage: core.Stage, mesh, writer, clock) -> Callable:
    """(step, variables, frozen) -> metrics of every evaluator, logged."""
    predicts = {
        name: compiled(evaluator, mesh) for name, evaluator in stage.evaluators.items()
    }

    def judge(step, variables, frozen) -> dict:
        found = {}
        with clock.paused():
            for name, evaluator in stage.evaluators.items():
                predict = predicts[name]
                state = fold(evaluator, predict, mesh, variables, frozen)
                scores = evaluator.finish(state)
                found |= {f"{name}/{key}": value for key, value in scores.items()}
            if found:
                writer.write(step, found)
        return found

    return judge


def metrics(stage: core.Stage) -> list[str]:
    """Names of all that `judge` tells, such as `eval/top1`."""
    return [
        f"{name}/{key}"
        for name, evaluator in stage.evaluators.items()
        for key in evaluator.finish(evaluator.start())
    ]


def compiled(evaluator: core.Evaluator, mesh) -> Callable:
    """The evaluator's `predict`, jitted; what it sends does not grow with the batch."""

    def predict(variables, frozen, batch):
        variables, frozen = parallel.gathered((variables, frozen), mesh)
        return evaluator.predict(variables, frozen, batch)

    # Every output is split by rows only, or a host could not find its own again.
    return jax.jit(predict, out_shardings=parallel.batch_sharding(mesh))


def fold(evaluator: core.Evaluator, predict: Callable, mesh, variables, frozen):
    """The state after every example, of all hosts; `predict` is of `compiled`."""
    state = evaluator.start()
    for batch, examples in evaluator.batches():
        outputs = predict(variables, frozen, parallel.to_global(batch, mesh))
        state = evaluator.update(state, parallel.to_local(outputs), examples)
    return evaluator.merge(parallel.gather_states(state))
