# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses weights whose shapes fit, but which were trained for other inputs."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.models import mae, variants, vit
from g2sd_jax.weights import loading, options


def check_heads(weights: loading.Weights, model: ConfigDict, where: str) -> None:
    """Refuses other attention heads or another epsilon, which no shape shows.

    Args:
        weights: with a description, else nothing is checked.
        model: `config.model` or `config.teacher.model`.
        where: which of the two.
    """
    check_epsilon(weights, model, where)
    if "variant" in model and "patch_embed.proj.weight" in weights.arrays:
        theirs = options.of(weights.arrays, weights.describe, weights.source)
        check_variant(theirs, variants.read(model, where), weights.source, where)
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


def check_epsilon(weights: loading.Weights, model: ConfigDict, where: str) -> None:
    """Refuses another epsilon of the LayerNorms, which no shape shows.

    Args:
        weights: with a description, else nothing is checked.
        model: `config.model` or `config.teacher.model`.
        where: which of the two.
    """
    theirs = weights.describe.get("model", {}).get("norm_eps")
    mine = vit.norm_eps(model)
    if theirs not in (None, mine):
        raise ValueError(
            f"{where}.norm_eps={mine:g}, but the LayerNorms of {weights.source!r} add "
            f"{theirs:g} to the variance; set --{where}.norm_eps={theirs:g}."
        )


def check_variant(
    theirs: variants.Variant, mine: variants.Variant, source: str, where: str
) -> None:
    """Refuses an encoder whose options are others than the model's.

    Args:
        theirs: of the weights.
        mine: of the model.
        source: of the weights.
        where: the model's group of keys.
    """
    pairs = zip(variants.Variant._fields, theirs, mine, strict=True)
    others = [
        f"{name} {value!r} instead of {wanted!r}"
        for name, value, wanted in pairs
        if value != wanted and name != "resize"
        if not (name == "layer_scale" and value and wanted)
        if not (name.startswith("rotary_") and theirs.rotary == mine.rotary == "none")
    ]
    if others:
        raise ValueError(
            f"{source!r} is another encoder than {where}: {', '.join(others)}; set "
            f"--{where}.variant.… to what it has, or --{where}.size=file."
        )


def check_normalisation(weights: loading.Weights, config: ConfigDict, key: str) -> None:
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


def check_pictures(weights: loading.Weights, config: ConfigDict) -> None:
    """Refuses a teacher that would see pictures of another normalisation than its own.

    It sees that of `config.teacher.mean` and `std`, or where they are empty the data's.
    """
    for name in ("mean", "std"):
        trained = weights.describe.get(name)
        wanted = tuple(config.teacher[name]) or tuple(config.data[name])
        if trained is not None and tuple(trained) != wanted:
            raise ValueError(
                f"config.teacher.checkpoint={weights.source!r} was trained with "
                f"data.{name}={tuple(trained)}, but is shown {wanted}; set "
                f"--config.teacher.{name}={','.join(map(str, trained))}."
            )


def check_teacher(weights: loading.Weights, config: ConfigDict) -> None:
    """Checks normalisation and attention heads of `config.teacher`."""
    if "mean" in config.teacher:
        check_pictures(weights, config)
    else:
        check_normalisation(weights, config, "config.teacher.checkpoint")
    check_heads(weights, config.teacher.model, "config.teacher.model")


def check_classes(
    weights: loading.Weights, of_data: Callable[[], Sequence[str]], key: str
) -> None:
    """Refuses a head whose classes are others than the data's, or in another order.

    Foreign files do not name theirs, nor do some data sets.

    Args:
        weights: with `class_names` in their description, else nothing is checked.
        of_data: () -> names in label order; asked only where there are two to compare.
        key: the config key to name in errors.
    """
    theirs = tuple(weights.describe.get("class_names") or ())
    names = tuple(of_data()) if theirs else ()
    if not names or theirs == names:
        return
    if len(theirs) == len(names):
        label = next(i for i in range(len(names)) if theirs[i] != names[i])
        difference = (
            f"its label {label} is {theirs[label]!r}, that of the data {names[label]!r}"
        )
    else:
        listed = errors.shorten_list(theirs)
        difference = f"it knows {len(theirs)} classes ({listed}), the data {len(names)}"
    raise ValueError(
        f"{key}={weights.source!r} was trained on other classes: {difference}. Its "
        "answers would be taken for others; use weights of these classes, or data of "
        "its classes in the same order (config.data.class_list maps names to outputs)."
    )
