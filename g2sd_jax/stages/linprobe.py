# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probing of a frozen encoder (MAE, section 4.2)."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.evaluators import splits, top1
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment
from g2sd_jax.tasks import classification, first_batch
from g2sd_jax.weights import agreement, graft, parts

NEEDS = ("encoder",)
DISTILLS = ""


class Probe(nn.Module):
    """BatchNorm without scale or bias, then one linear layer."""

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        """features [B, D] -> logits [B, C]."""
        return Head(self.classes, name="head")(features, train)


class Head(nn.Module):
    """Named as the published state dict has it: head.0 and head.1."""

    classes: int

    @nn.compact
    def __call__(self, features, train):
        x = layers.BatchNorm(eps=1e-6, affine=False, name="0")(features, train)
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.classes, kernel_init=init, name="1")(x)


def probe_loss(
    probe: Probe,
    params: Mapping,
    model_state: Mapping,
    features: jax.Array,
    target: jax.Array,
) -> tuple[jax.Array, tuple]:
    """Cross-entropy of the probe on features [B, D] against soft targets [B, C]."""
    logits, model_state = probe.apply(
        {"params": params, **model_state}, features, True, mutable=["batch_stats"]
    )
    return core.total({"xent": cross_entropy.soft(logits, target)}, model_state)


def build(config: ConfigDict) -> core.Stage:
    """Only the head trains; the encoder is the frozen part of the stage."""
    if config.data.classes < 1:
        raise ValueError(
            f"config.data.classes={config.data.classes}: a probe needs the number of "
            "classes of its data."
        )
    encoder = vit.classifier(config.model, 0, **layers.compute_options(config))
    probe_head = Probe(config.data.classes)
    spec = augment.spec(config, train=True)
    eval_spec = augment.spec(config, train=False)

    def init(key):
        return probe_head.init(key, jax.numpy.zeros((2, encoder.width)), True)

    def draw(key, batch):
        return augment.draw(key, batch, spec)

    def loss(params, model_state, frozen, batch, draws, step):
        batch = augment.prepare(batch, draws, spec)
        features = encoder.apply(frozen, batch["image"]).pooled
        return probe_loss(probe_head, params, model_state, features, batch["target"])

    def predict(variables, frozen, batch):
        batch = augment.prepare(batch, {}, eval_spec)
        features = encoder.apply(frozen, batch["image"]).pooled
        return {"logits": probe_head.apply(variables, features, False)}

    def fit(weights):
        if weights is not None:
            agreement.check_normalisation(weights, config, "config.encoder.checkpoint")
            agreement.check_heads(weights, config.model, "config.model")
        return lambda key: vit.init(encoder, key)

    def frozen():
        return graft.load_variables(
            config.encoder.checkpoint,
            fit,
            grid=vit.grid(config.model),
            key="config.encoder.checkpoint",
            dropped=(
                *parts.PRETRAINING_NAMES,
                r"head.*",
                *parts.unread(config.model.pool),
            ),
        )

    eval_split = splits.eval_split(config, classification.READS)
    batches = splits.batches_from(eval_split, config)
    evaluator = top1.top1(predict, batches, config.data.classes)
    return core.Stage(
        init,
        draw,
        loss,
        frozen,
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        evaluators={"eval": evaluator._replace(frozen=True)},
        classes=lambda: eval_split().classes,
        describe=dict(vit.describe(config), kind="probe"),
        reads=classification.READS,
        picture=first_batch.class_picture(config.augment.smoothing),
        summarise=functools.partial(
            first_batch.class_lines, config, evaluation=eval_split
        ),
    )
