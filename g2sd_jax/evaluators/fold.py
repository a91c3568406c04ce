# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every evaluator of a stage over its examples: on a mesh, and on all hosts."""

from collections.abc import Callable, Mapping

import jax

from g2sd_jax import clock, core, metrics, parallel


def make_evaluate(
    stage: core.Stage,
    mesh: jax.sharding.Mesh,
    writer: metrics.Writer,
    timer: clock.Clock,
) -> Callable[[int, Mapping, Mapping], dict[str, float]]:
    """(step, variables, frozen) -> metrics of every evaluator, logged.

    Args:
        stage: with the evaluators.
        mesh: that the variables lie on.
        writer: of the metrics.
        timer: of the steps; it stands still meanwhile.
    """
    predicts = {
        name: compile_predict(evaluator, mesh)
        for name, evaluator in stage.evaluators.items()
    }

    def evaluate(step, variables, frozen):
        results = {}
        with timer.paused():
            for name, evaluator in stage.evaluators.items():
                predict = predicts[name]
                state = fold(evaluator, predict, mesh, variables, frozen)
                finished = evaluator.finish(state)
                results |= {f"{name}/{key}": value for key, value in finished.items()}
            if results:
                writer.write(step, results)
        return results

    return evaluate


def metric_names(stage: core.Stage) -> list[str]:
    """Names of all metrics of the stage's evaluators, such as `eval/top1`."""
    return [
        f"{name}/{key}"
        for name, evaluator in stage.evaluators.items()
        for key in evaluator.finish(evaluator.start())
    ]


def scores(stage: core.Stage) -> dict[str, core.Score]:
    """The metrics that say how good a model is, by a name such as `eval/top1`."""
    return {
        f"{name}/{score.key}": score
        for name, evaluator in stage.evaluators.items()
        for score in evaluator.scores
    }


def count_names(stage: core.Stage) -> set[str]:
    """Names of the metrics that only count what was scored, such as `eval/count`."""
    return {
        f"{name}/{score.count}"
        for name, evaluator in stage.evaluators.items()
        for score in evaluator.scores
        if score.count
    }


def compile_predict(evaluator: core.Evaluator, mesh: jax.sharding.Mesh) -> Callable:
    """The evaluator's `predict`, jitted; its traffic does not grow with the batch."""

    def predict(variables, frozen, batch):
        variables, frozen = parallel.gather_over_fsdp((variables, frozen), mesh)
        return evaluator.predict(variables, frozen, batch)

    # Every output is split by rows only, or a host could not find its own again.
    return jax.jit(predict, out_shardings=parallel.batch_sharding(mesh))


def fold(
    evaluator: core.Evaluator,
    predict: Callable,
    mesh: jax.sharding.Mesh,
    variables: Mapping,
    frozen: Mapping,
) -> dict:
    """The evaluator's state after every example of all hosts.

    Args:
        evaluator: whose state it is.
        predict: the evaluator's own, as `compile_predict` returns it.
        mesh: that the batches are placed on.
        variables: of the model.
        frozen: the stage's frozen variables, where the evaluator reads them.
    """
    state = evaluator.start()
    for batch, examples in evaluator.batches():
        outputs = predict(variables, frozen, parallel.to_global(batch, mesh))
        state = evaluator.update(state, parallel.to_local(outputs), examples)
    return evaluator.merge(parallel.gather_states(state))
