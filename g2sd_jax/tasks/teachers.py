# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen encoders as teachers: what they see, and what a student may learn of them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import patches, resize
from g2sd_jax.weights import agreement, graft, loading, parts, resolution

VIEWS = ("visible", "full")
WHERE = "config.teacher.model"
KEY = "config.teacher.checkpoint"
# Of a file whose encoder is all that is needed.
UNREAD = (*parts.PRETRAINING_NAMES, r"head\..*", r"(fc_norm|attn_pool)\..*")


class Answer(NamedTuple):
    """What an encoder answers to a picture; T counts its class token, if any, and the
    patches of the view, registers left out."""

    tokens: jax.Array | None  # [B, T, D] float32 after the last norm, where asked for.
    taps: jax.Array | None  # [depth, B, T, D] after every block, where asked for.
    qkv: tuple[jax.Array, ...] | None  # [depth, B, T, D] each, where asked for.


def build(config: ConfigDict, last_norm: bool, **fields: object) -> vit.Vit:
    """Builds the module of `config.teacher.model`, which is an encoder's.

    Args:
        config: the recipe.
        last_norm: whether it has the norm after its last block.
        **fields: other fields of `vit.Vit`.
    """
    if not last_norm:
        fields["pool"] = "none"
    fields |= layers.compute_options(config)
    return vit.encoder(config.teacher.model, WHERE, **fields)


def with_class_names(describe: Mapping, checkpoint: str) -> dict:
    """A student's description with its teacher's classes, of data that name none.

    Args:
        describe: the student's.
        checkpoint: of the teacher.
    """
    if not resolution.named(checkpoint):
        return dict(describe)
    names = loading.read(checkpoint, KEY).describe.get("class_names") or ()
    return dict(describe, class_names=tuple(names))


def check(config: ConfigDict, teacher: vit.Vit) -> None:
    """Refuses a view that is not known, and a teacher with another grid of patches."""
    errors.one_of("config.distill.view", config.distill.view, VIEWS)
    grid = vit.grid(config.model)
    if grid != teacher.grid:
        size = tuple(side * teacher.patch for side in grid)
        raise ValueError(
            f"config.model has a {grid} grid of patches, {WHERE} {teacher.grid}; both "
            f"must see the same patches: set --{WHERE}.image_size="
            f"{size[0]},{size[1]} (the teacher's picture is resized to it)."
        )


def picture(
    image: jax.Array, config: ConfigDict, size: tuple[int, int] | None = None
) -> jax.Array:
    """[B, H, W, C] as the teacher sees it: by its mean and std, of its size.

    Args:
        image: [B, h, w, C] normalised for the student.
        config: the recipe; `config.teacher.mean` and `std` may be empty, for no others.
        size: (H, W) of the teacher; None for the student's.
    """
    teacher, data = config.teacher, config.data
    if teacher.get("mean") or teacher.get("std"):
        mean, std = teacher.mean or data.mean, teacher.std or data.std
        if (tuple(mean), tuple(std)) != (tuple(data.mean), tuple(data.std)):
            as_row = lambda numbers: jnp.asarray(numbers, image.dtype)[None, None, None]
            image = image * as_row(data.std) + as_row(data.mean)
            image = (image - as_row(mean)) / as_row(std)
    if size is not None and image.shape[1:3] != tuple(size):
        image = resize.along_both(image, resize.antialiased_cubic, tuple(size))
    return image


def ask(
    teacher: vit.Vit,
    variables: Mapping,
    image: jax.Array,
    masking: patches.Masking | None,
) -> Answer:
    """Applies a teacher to pictures that `picture` has prepared.

    Args:
        teacher: the encoder.
        variables: frozen.
        image: [B, H, W, C].
        masking: the patches it sees, in its order; None for all.
    """
    out = teacher.apply(variables, image, None, masking)
    class_token, prefix = teacher.variant.class_token, teacher.variant.prefix

    def without_registers(x):
        if prefix == class_token:
            return x
        return jnp.concatenate([x[..., :class_token, :], x[..., prefix:, :]], axis=-2)

    return Answer(*jax.tree.map(without_registers, (out.normed, out.taps, out.qkv)))


def gather(x: jax.Array, ids: jax.Array, prefix: int) -> jax.Array:
    """Picks the patches `ids` of [..., B, T, D]; the `prefix` tokens stay in front."""
    picked = jnp.take_along_axis(
        x[..., prefix:, :], ids.reshape(*(1,) * (x.ndim - 3), *ids.shape, 1), axis=-2
    )
    return jnp.concatenate([x[..., :prefix, :], picked], axis=-2)


def load(config: ConfigDict, teacher: vit.Vit) -> dict:
    """Loads the frozen variables of an encoder."""

    def fit(weights: loading.Weights | None) -> Callable[[jax.Array], dict]:
        if weights is not None:
            check_weights(weights, config, teacher)
        return lambda key: vit.init(teacher, key)

    dropped = UNREAD if teacher.pool != "none" else (*UNREAD, r"norm\..*")
    return graft.load_variables(
        config.teacher.checkpoint, fit, grid=teacher.grid, key=KEY, dropped=dropped
    )


def check_weights(
    weights: loading.Weights, config: ConfigDict, teacher: vit.Vit
) -> None:
    """Refuses weights that the teacher of this config can not be."""
    model = config.teacher.model
    agreement.check_heads(weights, model, WHERE)
    if "dist_token" in weights.arrays:
        raise ValueError(
            f"{KEY}={weights.source!r} has a distillation token, which an encoder as "
            "teacher has not; use the run it was started from."
        )
    if teacher.pool != "none" and "norm.weight" not in weights.arrays:
        raise ValueError(
            f"{KEY}={weights.source!r} holds {weights.summary()}, and no norm after "
            "its last block (its head norms the mean of the patches): let the target "
            f"be a block, such as --config.distill.teacher_block={teacher.depth}."
        )
    agreement.check_pictures(weights, config)
