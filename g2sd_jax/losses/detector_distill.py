# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of a detector: its maps and its objectness, where the teacher looks.

After G2SD's detection stage. Every position of a level counts as much as the teacher
is sure of an object there. The functions return the terms of one level without their
weights; no gradient reaches the teacher's side.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from g2sd_jax.losses import detection


def attention_mask(
    logits: Float32[ArrayLike, "B h w anchors"],
) -> Float32[Array, "B h w"]:
    """The teacher's largest objectness probability at every position.

    Args:
        logits: of the teacher's anchors.
    """
    return jax.nn.sigmoid(jax.lax.stop_gradient(logits)).max(axis=-1)


def features(
    adapted: Float[ArrayLike, "B h w E"],
    teacher: Float[ArrayLike, "B h w E"],
    mask: Float32[ArrayLike, "B h w"],
    *,
    group: int,
) -> Float32[Array, ""]:
    """Squared error summed over channels, mean over positions weighted by the mask.

    Args:
        adapted: the student's map after its adapter.
        teacher: the teacher's map.
        mask: of `attention_mask`.
        group: of `detection.group_mean`.
    """
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    error = jnp.square(teacher - adapted.astype(jnp.float32)).sum(axis=-1)
    return _masked_mean(error, mask, group)


def objectness(
    logits: Float32[ArrayLike, "B h w anchors"],
    teacher: Float32[ArrayLike, "B h w anchors"],
    mask: Float32[ArrayLike, "B h w"],
    *,
    group: int,
    cut: bool = False,
) -> Float32[Array, ""]:
    """Cross-entropy of the student's probabilities with the teacher's, sum of anchors.

    Its least value is the teacher's entropy, not 0.

    Args:
        logits: of the student's anchors.
        teacher: of the teacher's.
        mask: of `attention_mask`.
        group: of `detection.group_mean`.
        cut: compute from probabilities, with logarithms cut at -100, as published:
            where a probability rounds to 0 or 1 the gradient is lost. False computes
            from logits, which is the same elsewhere.
    """
    target = jax.nn.sigmoid(jax.lax.stop_gradient(teacher))
    form = cut_cross_entropy if cut else cross_entropy
    return _masked_mean(form(logits, target).sum(axis=-1), mask, group)


def cross_entropy(
    logits: Float32[ArrayLike, "*shape"], target: Float32[ArrayLike, "*shape"]
) -> Float32[Array, "*shape"]:
    """Binary cross-entropy with a soft target, from logits; elementwise."""
    return jax.nn.softplus(logits) - target * logits


@jax.custom_jvp
def cut_cross_entropy(
    logits: Float32[ArrayLike, "*shape"], target: Float32[ArrayLike, "*shape"]
) -> Float32[Array, "*shape"]:
    """Binary cross-entropy from probabilities, logarithms cut at -100 (PyTorch's)."""
    probability = jax.nn.sigmoid(logits)
    log = jnp.maximum(jnp.log(probability), -100.0)
    log_other = jnp.maximum(jnp.log1p(-probability), -100.0)
    return -(target * log + (1 - target) * log_other)


@cut_cross_entropy.defjvp
def _cut_cross_entropy_jvp(primals, tangents):
    """PyTorch's slope, whose divisor is at least 1e-12; the target is constant."""
    logits, target = primals
    probability = jax.nn.sigmoid(logits)
    spread = probability * (1 - probability)
    slope = (probability - target) * (spread / jnp.maximum(spread, 1e-12))
    return cut_cross_entropy(logits, target), slope * tangents[0]


def _masked_mean(values, mask, group):
    positions = (1, 2)
    total = (values * mask).sum(axis=positions)
    return detection.group_mean(total, mask.sum(axis=positions), group)
