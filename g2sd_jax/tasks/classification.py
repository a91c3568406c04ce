# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Classification, as fine-tuning and specific distillation share it."""

import functools
import math
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.evaluators import splits, top1
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment
from g2sd_jax.tasks import first_batch
from g2sd_jax.weights import agreement, graft, loading, parts

NEEDS = ("init_from",)
RECIPE = "finetune:task=classification"
READS = ("label",)


def build(config: ConfigDict) -> core.Task:
    """The classification `Task` of `config.model` and `config.data.classes`."""
    if config.data.classes < 1:
        raise ValueError(
            f"config.data.classes={config.data.classes}: a classifier needs the number "
            "of classes of its data."
        )
    model = vit.classifier(
        config.model, config.data.classes, **layers.compute_options(config)
    )
    spec = augment.spec(config, train=True)
    eval_spec = augment.spec(config, train=False)
    eval_split = splits.eval_split(config, READS)

    def init(key):
        return vit.init(model, key)

    def draw(key, batch):
        keys = core.stream_keys(key, "augment", "drop_path")
        draws = augment.draw(keys["augment"], batch, spec)
        if model.drop_path:
            shape = (len(batch["image"]), model.depth, 2)
            draws["drop_path"] = jax.random.uniform(keys["drop_path"], shape)
        return draws

    def forward(variables, batch, draws):
        noise = draws.get("drop_path")
        return model.apply(variables, batch["image"], noise), {}

    def terms(outputs, batch):
        return {"xent": cross_entropy.soft(outputs.logits, batch["target"])}

    def predict(variables, frozen, batch):
        batch = augment.prepare(batch, {}, eval_spec)
        outputs = model.apply(variables, batch["image"])
        return {"logits": vit.read_logits(outputs, config.model.readout)}

    return core.Task(
        init=init,
        draw=draw,
        forward=forward,
        terms=terms,
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        evaluators={
            "eval": top1.top1(
                predict, splits.batches_from(eval_split, config), config.data.classes
            )
        },
        warm_start=lambda variables: warm_start(variables, config, model),
        describe=vit.describe(config),
        classes=lambda: eval_split().classes,
        reads=READS,
        picture=first_batch.class_picture(config.augment.smoothing),
        summarise=functools.partial(
            first_batch.class_lines, config, evaluation=eval_split
        ),
        chance={"xent": chance_of_cross_entropy(config.data.classes)},
    )


def chance_of_cross_entropy(classes: int) -> core.Chance:
    """The loss of answers that give every class the same probability."""
    guess = math.log(classes)

    def warning(loss):
        return (
            f"the loss is still {loss:.2f}, and guessing among {classes} classes costs "
            f"ln({classes}) = {guess:.2f}: the labels have nothing to do with the "
            "pictures (shuffled?), or nothing is learned at all (config.optim.lr)."
        )

    return core.Chance(guess, warning)


def warm_start(variables: Mapping, config: ConfigDict, model: vit.Vit) -> Mapping:
    """Grafts a pre-trained encoder; the heads stay as drawn, as published."""
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.check_normalisation(weights, config, "config.init_from")
    agreement.check_heads(weights, config.model, "config.model")
    fresh = [r"head\..*", r"head_dist\..*", "dist_token"]
    if model.pool == "avg" and "fc_norm.weight" not in weights.arrays:
        fresh.append(r"fc_norm\..*")
    return graft.onto(
        variables,
        weights,
        grid=vit.grid(config.model),
        fresh=fresh,
        dropped=(*parts.PRETRAINING_NAMES, *parts.unread(model.pool)),
    )
