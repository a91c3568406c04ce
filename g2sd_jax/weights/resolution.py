# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Completes a config by what its weight files say: what can be read is not asked for.

A model whose `size` is `file` gets the architecture of the weights it is loaded from;
with `file or b16` there need be none, and then it is a b16.
"""

from ml_collections import ConfigDict

from g2sd_jax import parallel
from g2sd_jax.models import vit
from g2sd_jax.weights import architecture, loading, options

RANDOM = "random:"


def named(checkpoint: str) -> bool:
    """Whether a checkpoint key names weights that say what they are."""
    return bool(checkpoint) and not checkpoint.startswith(RANDOM)


def wants_file(model: ConfigDict) -> bool:
    """Whether a model's architecture is to be read from its weights."""
    size = model.get("size") or ""
    return size == vit.FILE or size.startswith(vit.OF_FILE)


def fill(
    model: ConfigDict, checkpoint: str, key: str, where: str, with_head: bool = False
) -> loading.Weights | None:
    """Sets the keys of a model by the weights that it is loaded from.

    Keys that were set already have to agree with the weights, where these tell them.

    Args:
        model: group of keys, of which `size` asks for the file.
        checkpoint: the value of `key`.
        key: the config key that names the weights, for errors.
        where: the model's name, for errors.
        with_head: whether what the head reads is taken from the weights, too.
    Returns:
        The weights; None where none are named and a size stands in for them.
    """
    if not named(checkpoint):
        if model.size.startswith(vit.OF_FILE):
            with model.unlocked():
                model.size = model.size.removeprefix(vit.OF_FILE)
            return None
        raise ValueError(
            f"{where}.size={vit.FILE} reads the architecture from {key}="
            f"{checkpoint!r}, which names no weights; name a workdir or a file, or a "
            f"size such as --{where}.size=b16."
        )
    weights = loading.read(checkpoint, key)
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    heads = shape.heads or model.heads
    if heads is None:
        raise ValueError(
            f"{key}={checkpoint!r} does not say its number of attention heads, and no "
            f"known model has its shape; set --{where}.heads=… of its {shape.width} "
            "channels."
        )
    values = dict(
        size=shape.size,
        width=shape.width,
        depth=shape.depth,
        heads=heads,
        patch=shape.patch,
        channels=shape.channels,
        mlp_ratio=float(shape.mlp_ratio),
        norm_eps=float(shape.norm_eps),
    )
    for name in vit.Size._fields:
        if model[name] not in (None, values[name]):
            raise ValueError(
                f"--{where}.{name}={model[name]}, but {checkpoint!r} has "
                f"{values[name]}; leave it out, for it is read from there."
            )
    if "decoder" in model and shape.decoder:
        decoder_heads = shape.decoder.heads or model.dec_heads
        if decoder_heads is None:
            raise ValueError(
                f"{key}={checkpoint!r} does not say the attention heads of its decoder;"
                f" set --{where}.dec_heads=… of its {shape.decoder.width} channels."
            )
        values |= dict(
            decoder="custom",
            dec_width=shape.decoder.width,
            dec_depth=shape.decoder.depth,
            dec_heads=decoder_heads,
        )
    if with_head and shape.classes:
        values |= dict(pool=shape.pool, dist_token=shape.dist_token)
    elif model.get("pool") == "cls" and not shape.variant.class_token:
        values["pool"] = "norm_avg"
    with model.unlocked():
        for name, value in values.items():
            model[name] = value
        if "variant" in model:
            _fill_variant(model.variant, shape, weights, where)
    described = ", ".join(f"{name} {values[name]}" for name in vit.Size._fields)
    parallel.print_once(f"{where} is that of {checkpoint}: {described}")
    return weights


def _fill_variant(
    variant: ConfigDict,
    shape: architecture.Architecture,
    weights: loading.Weights,
    where: str,
) -> None:
    """Sets the options of an encoder; those that were set go before the file's."""
    if options.undecided(weights.describe) and variant.activation is None:
        raise ValueError(options.ASK.format(source=weights.source, where=where))
    for name, value in shape.variant._asdict().items():
        if variant[name] is None:
            variant[name] = value


def fill_pictures(
    group: ConfigDict, weights: loading.Weights, where: str = "config.data"
) -> None:
    """Sets `mean` and `std` of a group to those the weights were trained with."""
    for name in ("mean", "std"):
        theirs = weights.describe.get(name)
        if theirs is None or tuple(theirs) == tuple(group[name]):
            continue
        with group.unlocked():
            group[name] = tuple(float(number) for number in theirs)
        listed = ", ".join(f"{number:g}" for number in theirs)
        parallel.print_once(f"{where}.{name} is that of {weights.source}: {listed}")


def fit_grid(model: ConfigDict, grid: tuple[int, int]) -> None:
    """Gives a teacher pictures of the size that its patches make of `grid`."""
    patch = vit.size(model).patch
    size = tuple(side * patch for side in grid)
    if tuple(model.image_size) != size:
        with model.unlocked():
            model.image_size = size
