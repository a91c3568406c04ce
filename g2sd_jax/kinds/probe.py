# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The linear probe: a batch norm and a linear layer on another run's encoder."""

from typing import NoReturn

from g2sd_jax import kinds
from g2sd_jax.kinds import vit
from g2sd_jax.weights import description, loading

NORM_MEAN, LINEAR = "head.0.running_mean", "head.1.weight"


def holds(weights: loading.Weights) -> list[str]:
    """Lines on the linear layer and the pictures it was trained on."""
    classes, width = weights.arrays[LINEAR].shape
    return [
        f"linear probe: {classes} classes, on features {width} wide of an encoder that "
        "is not in it",
        *description.pictures(weights.describe, with_classes=True),
    ]


def serves(weights: loading.Weights) -> list[str]:
    """One line: it judges features, and no later stage starts from it."""
    return ["serves: g2sd evaluate and predict, by its workdir"]


def module(model: kinds.Finished) -> NoReturn:
    """Refuses: its parameters are not those of an encoder."""
    raise ValueError(
        f"{model.source} is a linear probe and holds no encoder; ask the run "
        f"its encoder comes from, {model.config.encoder.checkpoint}."
    )


def prepare(weights: loading.Weights, options: kinds.ExportOptions) -> NoReturn:
    """Refuses every format."""
    raise ValueError(
        f"--workdir={weights.source!r} is a linear probe, whose encoder is not its "
        "own: export the encoder, or fine-tune a classifier."
    )


KIND = kinds.Kind(
    recognises=lambda arrays: NORM_MEAN in arrays and LINEAR in arrays,
    holds=holds,
    serves=serves,
    module=module,
    answers=vit.answers,
    prepare=prepare,
)
