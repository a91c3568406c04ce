# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cheap signs of progress during masked stages: validation loss and neighbours."""

import functools
import itertools

import jax
import numpy as np

from g2sd_jax import core
from g2sd_jax.data import order, source
from g2sd_jax.models import mae
from g2sd_jax.ops import augment
from g2sd_jax.tasks import classification


def evaluators(config, stage: core.Stage, student: mae.Mae) -> dict:
    """Those that `config.signal` asks for, on the evaluation split.

    Args:
        config: the recipe of a masked stage.
        stage: whose loss is taken, one example at a time.
        student: the autoencoder, whose encoder gives the features.
    """
    found = {}
    batches = classification.eval_batches(config)
    if config.signal.loss:
        found["val"] = mean_loss(config, stage, batches)
    if config.signal.neighbours:
        if config.data.classes < 2:
            raise ValueError(
                f"config.signal.neighbours={config.signal.neighbours} votes on labels, "
                f"but config.data.classes={config.data.classes}; set it to 0."
            )
        found["knn"] = neighbours(config, student, batches)
    return found


def mean_loss(config, stage: core.Stage, batches) -> core.Evaluator:
    """The stage's own loss on un-augmented pictures, always under the same masks."""
    plain = augment.spec(config, train=False)

    def predict(variables, frozen, batch):
        batch = augment.prepare(batch, {}, plain)
        draws = stage.draw(jax.random.key(0), batch)
        model_state = {k: v for k, v in variables.items() if k != "params"}

        def one(batch, draws):
            batch, draws = jax.tree.map(lambda x: x[None], (batch, draws))
            given = variables["params"], model_state, frozen, batch, draws, 0
            return stage.loss(*given)[0]

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

    return core.Evaluator(batches, predict, start, update, merge, finish, frozen=True)


def neighbours(config, student: mae.Mae, batches) -> core.Evaluator:
    """Top-1 of a vote among the nearest training pictures, by cosine (after DINO)."""
    encoder = mae.encoder(student)
    bank_of = functools.cache(lambda: bank_of_config(config))
    plain = augment.spec(config, train=False)

    def both():
        """The bank's batches, then those that are judged."""
        hosts = jax.process_index(), jax.process_count()
        bank = order.eval_batches(bank_of(), config.batch, *hosts)
        known = ((batch, [dict(e, bank=1) for e in them]) for batch, them in bank)
        asked = ((batch, [dict(e, bank=0) for e in them]) for batch, them in batches())
        return itertools.chain(known, asked)

    def predict(variables, frozen, batch):
        image = augment.prepare(batch, {}, plain)["image"]
        features = mae.features(encoder, variables, image)
        norm = jax.numpy.linalg.norm(features, axis=-1, keepdims=True)
        return {"features": features / jax.numpy.maximum(norm, 1e-12)}

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
        found = dict(features=features, label=label, bank=bank)
        return {key: np.concatenate([state[key], found[key]]) for key in state}

    def merge(states):
        return {key: np.concatenate([s[key] for s in states]) for key in start()}

    def finish(state):
        bank = state["bank"]
        if bank.all() or not bank.any():
            return {"top1": float("nan")}
        chosen = vote(
            state["features"][bank],
            state["label"][bank],
            state["features"][~bank],
            count=config.signal.neighbours,
            classes=config.data.classes,
        )
        return {"top1": 100.0 * float(np.mean(chosen == state["label"][~bank]))}

    return core.Evaluator(both, predict, start, update, merge, finish)


def vote(bank, label, features, *, count, classes, temperature=0.07) -> np.ndarray:
    """[M] classes, each neighbour weighing exp(cosine / temperature).

    Args:
        bank: [N, D] unit features of known pictures.
        label: [N] their classes.
        features: [M, D] unit features to judge.
        count: how many neighbours vote.
        classes: C.
        temperature: of the weights.
    """
    count = min(count, len(bank))
    similar = features @ bank.T  # [M, N]
    nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
    weights = np.exp(np.take_along_axis(similar, nearest, axis=1) / temperature)
    votes = np.zeros((len(features), classes))
    rows = np.arange(len(features))[:, None]
    np.add.at(votes, (rows, label[nearest]), weights)
    return votes.argmax(axis=1)


def bank_of_config(config):
    """`config.signal.bank` training pictures, the same ones all through a run."""
    dataset = source.load(config, config.data.train_split)
    chosen = order.epoch_order(config.seed, 0, dataset.count)[: config.signal.bank]

    def fetch(indices, epoch=None):
        held = dataset.fetch(chosen[indices], epoch)
        return {**held, "index": indices.astype(np.int32)}

    return dataset._replace(
        count=len(chosen),
        fetch=fetch,
        original=lambda index: dataset.original(int(chosen[index])),
        stream=None,  # It would give all of the split; `fetch` says that it cannot.
    )
