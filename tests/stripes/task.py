# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Stripes: their direction as one of A, and their frequency as a number."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import stripes
from g2sd_jax import core, errors
from g2sd_jax.evaluators import splits
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment
from g2sd_jax.tasks import classification
from g2sd_jax.weights import agreement, graft, loading
from stripes import data, evaluator, model

NEEDS = ("init_from", "loss")
RECIPE = stripes.RECIPE
READS = ("stripe",)
DIVISORS = ("examples", "cycles")
BECAUSE = "config.loss.divisor=cycles divides by the cycles of the whole batch"


def build(config: ConfigDict) -> core.Task:
    """The `Task` of `config.model`; `config.data.classes` are directions."""
    directions = config.data.classes
    by_cycles = (
        errors.one_of("config.loss.divisor", config.loss.divisor, DIVISORS) == "cycles"
    )
    network = model.from_config(
        config.model, directions, **layers.compute_options(config)
    )
    spec = augment.spec(config, train=False)
    eval_split = splits.eval_split(config, READS)

    def terms(outputs, batch):
        degrees, cycles = batch["stripe"][:, 0], batch["stripe"][:, 1]
        label = jnp.round(degrees * directions / data.HALF_TURN).astype(jnp.int32)
        squares = jnp.square(outputs.frequency - cycles)
        divisor = cycles.sum() if by_cycles else len(cycles)
        return {
            "angle": cross_entropy.hard(outputs.logits, label),
            "frequency": config.loss.frequency * squares.sum() / divisor,
        }

    def predict(variables, frozen, batch):
        image = augment.prepare(batch, {}, spec)["image"]
        return network.apply(variables, image)._asdict()

    def picture(example, classes):
        degrees, cycles = example["stripe"]
        legend = [(int(degrees * directions / data.HALF_TURN), f"{degrees:g} deg")]
        return core.Picture(
            example["image"], caption=f"{cycles:.1f} cycles", legend=legend
        )

    return core.Task(
        init=lambda key: model.init(network, key),
        draw=lambda key, batch: {},
        forward=lambda variables, batch, draws: (
            network.apply(variables, batch["image"]),
            {},
        ),
        terms=terms,
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        evaluators={
            "eval": evaluator.stripe_error(
                predict, splits.batches_from(eval_split, config), directions
            )
        },
        warm_start=lambda variables: warm_start(variables, config),
        describe=model.describe(config),
        reads=READS,
        picture=picture,
        summarise=lambda dataset, batch: [f"stripes in {directions} directions"],
        indivisible=BECAUSE if by_cycles else None,
        chance={
            "angle": classification.chance_of_cross_entropy(directions),
            "frequency": chance_of_frequency(config, by_cycles),
        },
    )


def chance_of_frequency(config: ConfigDict, by_cycles: bool) -> core.Chance:
    """The loss of a model that always answers with the mean frequency."""
    low, high = data.FREQUENCIES
    guess = config.loss.frequency * (high - low) ** 2 / 12
    guess /= np.mean(data.FREQUENCIES) if by_cycles else 1.0

    def warning(loss):
        return (
            f"the loss of frequencies is still {loss:.2f}, and answering with their "
            f"mean costs {guess:.2f}: nothing is learned."
        )

    return core.Chance(float(guess), warning)


def warm_start(variables: Mapping, config: ConfigDict) -> Mapping:
    """Continues from another run of this task, all of it."""
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.check_normalisation(weights, config, "config.init_from")
    return graft.onto(variables, weights, grid=vit.grid(config.model))
