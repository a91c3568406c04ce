# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cheap signs of progress during masked stages: validation loss and neighbours."""

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order, source
from g2sd_jax.evaluators import splits
from g2sd_jax.models import mae
from g2sd_jax.ops import augment


def evaluators(
    config: ConfigDict, stage: core.Stage, student: mae.Mae
) -> dict[str, core.Evaluator]:
    """The evaluators that `config.monitor` asks for, on the evaluation split.

    Args:
        config: the recipe of a masked stage.
        stage: whose loss is taken, one example at a time.
        student: the autoencoder, whose encoder gives the features.
    """
    chosen = {}
    batches = splits.eval_batches(config)
    if config.monitor.loss:
        chosen["val"] = mean_loss(config, stage, batches)
    if config.monitor.neighbours:
        if config.data.classes == 1:
            raise no_labels(config)
        chosen["knn"] = neighbours(config, student, batches)
    return chosen


def no_labels(config: ConfigDict) -> ValueError:
    """The error about neighbours that have nothing to vote on."""
    return ValueError(
        f"config.monitor.neighbours={config.monitor.neighbours} votes on labels, but "
        f"config.data.classes={config.data.classes}, and the evaluation pictures have "
        "none either; set it to 0."
    )


def mean_loss(
    config: ConfigDict, stage: core.Stage, batches: Callable
) -> core.Evaluator:
    """The stage's own loss on un-augmented images, always under the same masks."""
    eval_spec = augment.spec(config, train=False)

    def predict(variables, frozen, batch):
        batch = augment.prepare(batch, {}, eval_spec)
        draws = stage.draw(jax.random.key(0), batch)
        model_state = {k: v for k, v in variables.items() if k != "params"}

        def one(batch, draws):
            batch, draws = jax.tree.map(lambda x: x[None], (batch, draws))
            params = variables["params"]
            loss, _ = stage.loss(params, model_state, frozen, batch, draws, 0)
            return loss

        return {"loss": jax.vmap(one)(batch, draws)}

    def start():
        return dict(total=np.float64(0), count=np.int64(0))

    def update(state, outputs, examples):
        losses = outputs["loss"][: len(examples)].astype(np.float64)
        total, count = state["total"] + losses.sum(), state["count"] + len(examples)
        return dict(total=total, count=count)

    def merge(states):
        return {key: sum(state[key] for state in states) for key in start()}

    def finish(state):
        count = state["count"]
        return {"loss": float(state["total"] / count) if count else float("nan")}

    return core.Evaluator(
        batches=batches,
        predict=predict,
        start=start,
        update=update,
        merge=merge,
        finish=finish,
        frozen=True,
        scores=(core.Score("loss", "loss", unit="", higher_is_better=False),),
    )


def neighbours(
    config: ConfigDict, student: mae.Mae, batches: Callable
) -> core.Evaluator:
    """Top-1 of a vote among the nearest training images, by cosine (after DINO).

    Where these have no labels, among the other evaluation images.
    """
    labelled = config.data.classes > 0
    encoder = mae.encoder(student)
    bank_of = functools.cache(lambda: bank_of_config(config))
    eval_spec = augment.spec(config, train=False)

    def marked(labelled_batches, bank):
        for batch, examples in labelled_batches:
            yield batch, [dict(example, bank=bank) for example in examples]

    def bank_then_split():
        if not labelled:
            split = splits.eval_split(config)()
            if len(split.classes) < 2:
                raise no_labels(config)
            return marked(splits.batches_from(lambda: split, config)(), 1)
        hosts = jax.process_index(), jax.process_count()
        bank = order.eval_batches(bank_of(), config.batch, *hosts)
        return itertools.chain(marked(bank, 1), marked(batches(), 0))

    def predict(variables, frozen, batch):
        image = augment.prepare(batch, {}, eval_spec)["image"]
        features = mae.features(encoder, variables, image)
        norm = jax.numpy.linalg.norm(features, axis=-1, keepdims=True)
        return {"features": features / jax.numpy.maximum(norm, 1e-12)}

    chance = 100 / config.data.classes if labelled else None

    def start():
        return dict(
            features=np.zeros((0, encoder.width), np.float32),
            label=np.zeros(0, np.int64),
            bank=np.zeros(0, bool),
        )

    def update(state, outputs, examples):
        features = np.asarray(outputs["features"][: len(examples)], np.float32)
        label = np.array([example["label"] for example in examples], np.int64)
        bank = np.array([example["bank"] for example in examples], bool)
        new = dict(features=features, label=label, bank=bank)
        return {key: np.concatenate([state[key], new[key]]) for key in state}

    def merge(states):
        return {key: np.concatenate([s[key] for s in states]) for key in start()}

    def finish(state):
        bank = state["bank"]
        if not labelled and len(bank) > 1:
            chosen = vote(
                state["features"],
                state["label"],
                state["features"],
                count=config.monitor.neighbours,
                classes=int(state["label"].max()) + 1,
                itself=False,
            )
            return {"top1": 100.0 * float(np.mean(chosen == state["label"]))}
        if bank.all() or not bank.any():
            return {"top1": float("nan")}
        chosen = vote(
            state["features"][bank],
            state["label"][bank],
            state["features"][~bank],
            count=config.monitor.neighbours,
            classes=config.data.classes,
        )
        return {"top1": 100.0 * float(np.mean(chosen == state["label"][~bank]))}

    return core.Evaluator(
        batches=bank_then_split,
        predict=predict,
        start=start,
        update=update,
        merge=merge,
        finish=finish,
        scores=(core.Score("top1", "top-1", chance=chance),),
    )


def vote(
    bank: np.ndarray,
    label: np.ndarray,
    features: np.ndarray,
    *,
    count: int,
    classes: int,
    temperature: float = 0.07,
    itself: bool = True,
) -> np.ndarray:
    """[M] classes, each neighbour weighing exp(cosine / temperature).

    Args:
        bank: [N, D] unit features of labelled images.
        label: [N] their classes.
        features: [M, D] unit features to classify.
        count: how many neighbours vote.
        classes: C.
        temperature: of the weights.
        itself: False where `features` are the bank, whose images do not vote on
            themselves.
    """
    count = min(count, len(bank) - (not itself))
    similar = features @ bank.T  # [M, N]
    if not itself:
        np.fill_diagonal(similar, -np.inf)
    nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
    weights = np.exp(np.take_along_axis(similar, nearest, axis=1) / temperature)
    votes = np.zeros((len(features), classes))
    rows = np.arange(len(features))[:, None]
    np.add.at(votes, (rows, label[nearest]), weights)
    return votes.argmax(axis=1)


def bank_of_config(config: ConfigDict) -> datasets.Dataset:
    """`config.monitor.bank` training images, the same ones all through a run."""
    dataset = source.load(config, config.data.train_split)
    chosen = order.epoch_order(config.seed, 0, dataset.count)[: config.monitor.bank]

    def fetch(indices, epoch=None):
        batch = dataset.fetch(chosen[indices], epoch)
        return {**batch, "index": indices.astype(np.int32)}

    return dataset._replace(
        count=len(chosen),
        fetch=fetch,
        original=lambda index: dataset.original(int(chosen[index])),
        stream=None,  # It would give all of the split; `fetch` says that it cannot.
    )
