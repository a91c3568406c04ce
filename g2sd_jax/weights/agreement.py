# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses weights that fit by their shapes and mean something else."""

from collections.abc import Callable

from g2sd_jax import core
from g2sd_jax.models import mae, vit
from g2sd_jax.weights import loading


def heads(weights: loading.Weights, model, where: str) -> None:
    """Refuses a head count other than the weights', which no shape would betray.

    Args:
        weights: as read.
        model: `config.model` or `config.teacher.model`.
        where: which of the two.
    """
    theirs = weights.describe.get("model", {}).get("heads")
    mine = vit.size(model, where).heads
    if theirs not in (None, mine):
        raise ValueError(
            f"{where} has {mine} heads, but {weights.source!r} was trained with "
            f"{theirs}; set --{where}.heads={theirs}."
        )
    theirs = (weights.describe.get("decoder") or {}).get("heads")
    if weights.has_decoder and theirs is not None and "decoder" in model:
        mine = mae.decoder(model, where).heads
        if mine != theirs:
            raise ValueError(
                f"{where}'s decoder has {mine} heads, but {weights.source!r} was "
                f"trained with {theirs}; set --{where}.dec_heads={theirs}."
            )


def pictures(weights: loading.Weights, config, key: str) -> None:
    """Refuses weights that were trained on pictures of another normalisation.

    Foreign files do not say theirs; runs of this project do.
    """
    for name in ("mean", "std"):
        theirs = weights.describe.get(name)
        if theirs is not None and tuple(theirs) != tuple(config.data[name]):
            raise ValueError(
                f"{key}={weights.source!r} was trained with data.{name}="
                f"{tuple(theirs)}, but config.data.{name}="
                f"{tuple(config.data[name])}; set --config.data.{name}="
                f"{','.join(map(str, theirs))}."
            )


def teacher(weights: loading.Weights, config) -> None:
    """Both of these, for what `config.teacher` names and describes."""
    pictures(weights, config, "config.teacher.checkpoint")
    heads(weights, config.teacher.model, "config.teacher.model")


def classes(weights: loading.Weights, of_data: Callable, key: str) -> None:
    """Refuses a head whose classes are others than the data's, or in another order.

    Foreign files do not name theirs, nor do some data sets.

    Args:
        weights: as read.
        of_data: () -> names in label order; asked only where there are two to compare.
        key: the config key to name in errors.
    """
    theirs = tuple(weights.describe.get("class_names") or ())
    names = tuple(of_data()) if theirs else ()
    if not names or theirs == names:
        return
    if len(theirs) == len(names):
        label = next(i for i in range(len(names)) if theirs[i] != names[i])
        told = (
            f"its label {label} is {theirs[label]!r}, that of the data {names[label]!r}"
        )
    else:
        few = core.few(theirs)
        told = f"it knows {len(theirs)} classes ({few}), the data {len(names)}"
    raise ValueError(
        f"{key}={weights.source!r} was trained on other classes: {told}. Its answers "
        "would be taken for others; use a teacher of these classes, or the classes of "
        "this teacher in the same order."
    )
