# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised training of one task, from pre-trained weights or from scratch."""

from ml_collections import ConfigDict

from g2sd_jax import core, tasks

NEEDS = ("task",)
DISTILLS = ""


def build(config: ConfigDict) -> core.Stage:
    """The task's own loss and nothing else."""
    return from_task(tasks.build(config))


def from_task(task: core.Task) -> core.Stage:
    """The fine-tuning stage of any task; specific distillation replaces its loss."""

    def loss(params, model_state, frozen, batch, draws, step):
        batch = task.augment(batch, draws)
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        metrics = task.metrics(outputs, batch)
        return core.total(task.terms(outputs, batch), model_state, **metrics)

    return core.Stage(
        task.init,
        task.draw,
        loss,
        warm_start=task.warm_start,
        augment=task.augment,
        evaluators=task.evaluators,
        classes=task.classes,
        describe=task.describe,
        chance={f"loss/{name}": chance for name, chance in task.chance.items()},
        reads=task.reads,
        picture=task.picture,
        summarise=task.summarise,
        indivisible=task.indivisible,
        group=task.group,
    )
