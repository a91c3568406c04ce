# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Naming what a picture shows: shared by fine-tuning and specific distillation."""

import functools

import jax
import numpy as np

from g2sd_jax import core
from g2sd_jax.data import order, source
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment
from g2sd_jax.tasks import confusion
from g2sd_jax.weights import agreement, graft, loading

NEEDS = ("init_from",)

# Of a pre-training file, a classifier has no use for these.
PRETRAINING = (
    r"decoder_.*",
    "mask_token",
    r"(encoder|decoder)feature_pred\..*",
    r"aligned_feature_projection_heads\..*",
    r"pooler\.dense\..*",  # Of transformers' bare models; nothing was trained with it.
)


def build(config) -> core.Task:
    """The classification `Task` of `config.model` and `config.data.classes`."""
    if config.data.classes < 1:
        raise ValueError(
            f"config.data.classes={config.data.classes}: a classifier needs the number "
            "of classes of its data."
        )
    model = vit.classifier(config.model, config.data.classes, **layers.machine(config))
    spec = augment.spec(config, train=True)
    plain = augment.spec(config, train=False)
    held_out = eval_split(config)

    def init(key, batch):
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
        batch = augment.prepare(batch, {}, plain)
        outputs = model.apply(variables, batch["image"])
        return {"logits": vit.read(outputs, config.model.readout)}

    return core.Task(
        init=init,
        draw=draw,
        forward=forward,
        terms=terms,
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        evaluators={
            "eval": top1(predict, batches_of(held_out, config), config.data.classes)
        },
        warm_start=lambda variables: warm_start(variables, config, model),
        describe=vit.describe(config),
        classes=lambda: held_out().classes,
    )


def warm_start(variables, config, model: vit.Vit):
    """Grafts a pre-trained encoder; the heads stay as drawn, as published."""
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.pictures(weights, config, "config.init_from")
    agreement.heads(weights, config.model, "config.model")
    unused = r"norm\..*" if model.pool == "avg" else r"fc_norm\..*"
    fresh = [r"head\..*", r"head_dist\..*", "dist_token"]
    if model.pool == "avg" and "fc_norm.weight" not in weights.arrays:
        fresh.append(r"fc_norm\..*")
    return graft.onto(
        variables,
        weights,
        grid=vit.grid(config.model),
        fresh=fresh,
        dropped=(*PRETRAINING, unused),
    )


def eval_split(config):
    """() -> the evaluation split, which is loaded once, when first asked."""
    return functools.cache(
        lambda: source.load(config, config.data.eval_split, evaluate=True)
    )


def eval_batches(config):
    """() -> batches of the evaluation split."""
    return batches_of(eval_split(config), config)


def batches_of(dataset, config):
    """() -> batches of `dataset()`, this process's share."""

    def batches():
        hosts = jax.process_index(), jax.process_count()
        return order.eval_batches(dataset(), config.batch, *hosts)

    return batches


def top1(predict, batches, classes: int) -> core.Evaluator:
    """Shares of right first, and right among the first five, answers.

    What was answered is kept for every example: little, and a table can be made of it.
    """
    empty = dict(label=np.int32, first=np.int32, among5=bool)

    def start():
        return {key: np.zeros(0, kind) for key, kind in empty.items()}

    def update(state, outputs, examples):
        label = np.array([example["label"] for example in examples], np.int32)
        logits = outputs["logits"][: len(label)]
        if examples and "among" in examples[0]:  # Not all classes: `data/classes.py`.
            allowed = examples[0]["among"]
            elsewhere = np.full_like(logits, -np.inf)
            elsewhere[:, allowed] = logits[:, allowed]
            logits = elsewhere
        best = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
        among5 = (best == label[:, None]).any(axis=1)
        found = dict(label=label, first=best[:, 0], among5=among5)
        return {key: np.concatenate([state[key], found[key]]) for key in state}

    def merge(states):
        return {key: np.concatenate([s[key] for s in states]) for key in start()}

    def finish(state):
        count = len(state["label"])
        share = lambda hits: 100.0 * float(hits.mean()) if count else float("nan")
        return {
            "top1": share(state["first"] == state["label"]),
            "top5": share(state["among5"]),
            "count": count,
        }

    return core.Evaluator(
        batches,
        predict,
        start,
        update,
        merge,
        finish,
        # A label of 255 is a class like any other here.
        confusion=lambda state: confusion.table(
            state["first"], state["label"], classes
        ),
    )
