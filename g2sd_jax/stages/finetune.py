# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised training of one task, from pre-trained weights or from scratch."""

from g2sd_jax import core, tasks

NEEDS = ("task",)


def build(config) -> core.Stage:
    """The task's own loss and nothing else."""
    return from_task(tasks.build(config))


def from_task(task: core.Task) -> core.Stage:
    """What fine-tuning is, whatever the task; distillation replaces its loss."""

    def loss(params, model_state, frozen, batch, draws, step):
        batch = task.augment(batch, draws)
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        return core.total(task.terms(outputs, batch), model_state)

    return core.Stage(
        task.init,
        task.draw,
        loss,
        warm_start=task.warm_start,
        augment=task.augment,
        evaluators=task.evaluators,
        describe=task.describe,
    )
