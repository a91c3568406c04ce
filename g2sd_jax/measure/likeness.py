# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How alike finished models are: answers under occlusion, and hidden features."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import errors, finished
from g2sd_jax.measure import speed
from g2sd_jax.models import features
from g2sd_jax.ops import augment, occlusion, similarity

FILE = "analysis.json"
PARTS = ("throughput", "occlusion", "cka")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def throughputs(models: Mapping[str, finished.Finished]) -> dict:
    """{name: its `speed.Speed` as a dict}."""
    speeds = speed.compare(list(models.values()))
    return {name: rate._asdict() for name, rate in zip(models, speeds, strict=True)}


def occlusion_curves(
    models: Mapping[str, finished.Finished],
    seed: int = 0,
    shares: Sequence[float] = SHARES,
) -> dict:
    """Every model's score over the share of patches that are blanked.

    All models lose the same patches, chosen by their weight in the reference's answer.

    Args:
        models: by name, the reference first.
        seed: of the random order.
        shares: of the patches that are blanked, 0..1.
    """
    reference, *_ = models.values()
    evaluators = {name: speed.evaluator_of(model) for name, model in models.items()}
    patch, grid = _patches(models)
    total = grid[0] * grid[1]
    counts = sorted({round(share * total) for share in shares})
    ask = {name: _blanked(models[name], evaluators[name], patch) for name in models}
    rank = _ranker(reference, speed.evaluator_of(reference), patch)
    variables, frozen = {}, {}
    for name, model in models.items():
        variables[name] = jax.device_put(model.variables)
        frozen[name] = jax.device_put(model.frozen(evaluators[name]))
    first = next(iter(models))
    states = {
        (name, order, count): evaluators[name].start()
        for name in models
        for order in occlusion.ORDERS
        for count in counts
    }
    key, total_examples = jax.random.key(seed), 0
    for number, (batch, examples) in enumerate(evaluators[first].batches()):
        total_examples += len(examples)
        noise = jax.random.fold_in(key, number)
        orders = rank(variables[first], frozen[first], batch, noise)
        for name, order, count in states:
            outputs = ask[name](
                variables[name], frozen[name], batch, orders[order], count
            )
            state = states[name, order, count]
            states[name, order, count] = evaluators[name].update(
                state, jax.device_get(outputs), examples
            )
    metrics = {at: evaluators[at[0]].finish(state) for at, state in states.items()}
    score = speed.score_of(reference)
    return dict(
        names=list(models),
        reference=first,
        score=score.key,
        score_unit=score.unit,
        examples=total_examples,
        patches=total,
        hidden=counts,
        curves={
            name: {
                order: [metrics[name, order, count][score.key] for count in counts]
                for order in occlusion.ORDERS
            }
            for name in models
        },
    )


def _patches(models):
    """The grid of patches that all models share, and their side."""
    patches = {
        name: (model.model().patch, tuple(model.describe["grid"]))
        for name, model in models.items()
    }
    if len(set(patches.values())) > 1:
        raise ValueError(
            f"models with other patches cannot lose the same ones: {patches}."
        )
    return next(iter(patches.values()))


def _blanked(model, evaluator, patch):
    """(variables, frozen, batch, ranks, count) -> answers, jitted."""

    def ask(variables, frozen, batch, ranks, count):
        batch = augment.prepare(batch, {}, model.spec)
        image = occlusion.blank(batch["image"], ranks, count, patch)
        return evaluator.predict(variables, frozen, {**batch, "image": image})

    return jax.jit(ask)


def _ranker(model, evaluator, patch):
    """(variables, frozen, batch, key) -> {order: ranks}, jitted."""

    def rank(variables, frozen, batch, key):
        batch = augment.prepare(batch, {}, model.spec)

        def answer(image):
            outputs = evaluator.predict(variables, frozen, {**batch, "image": image})
            return errors.lookup("what the reference answers", "logits", outputs)

        saliency = occlusion.saliency(answer, batch["image"], patch)
        return {
            order: occlusion.ranks(key, saliency, order) for order in occlusion.ORDERS
        }

    return jax.jit(rank)


def cka_maps(
    models: Mapping[str, finished.Finished], token: str, examples: int
) -> dict:
    """CKA of every model's blocks with the reference's, on the same pictures.

    Args:
        models: by name, the reference first.
        token: patches (their mean) or class.
        examples: how many pictures.
    """
    (first, reference), *others = models.items()
    batches = speed.evaluator_of(reference).batches
    reference_blocks = blocks(reference, batches, token, examples)
    _, count, width = reference_blocks.shape
    against = {}
    for name, model in others:
        model_blocks = blocks(model, batches, token, examples)
        against[name] = dict(
            cka=similarity.layerwise(model_blocks, reference_blocks).tolist(),
            noise=similarity.noise_level(count, model_blocks.shape[2], width),
        )
    return dict(
        names=list(models),
        reference=first,
        token=token,
        examples=count,
        against=against,
    )


def blocks(
    model: finished.Finished, batches: Callable, token: str, examples: int
) -> np.ndarray:
    """[depth, N, D] features of the first N pictures after every block."""
    module = model.model()
    ask = jax.jit(
        lambda variables, batch: features.blocks(
            module, variables, augment.prepare(batch, {}, model.spec)["image"], token
        )
    )
    variables = jax.device_put(model.variables)
    rows, count = [], 0
    for batch, _ in batches():
        rows.append(np.asarray(ask(variables, batch))[:, batch["valid"]])
        count += rows[-1].shape[1]
        if count >= examples:
            break
    return np.concatenate(rows, axis=1)[:, :examples]
