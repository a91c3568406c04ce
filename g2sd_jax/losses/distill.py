# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation losses: a student's features, relations and logits against a teacher's.

No gradient reaches the teacher's side of any of them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Integer

from g2sd_jax.losses import cross_entropy


def smooth_l1(
    pred: Float[ArrayLike, "*shape"], target: Float[ArrayLike, "*shape"], beta: float
) -> Float[Array, "*shape"]:
    """d^2 / (2 beta) below beta, |d| - beta / 2 above; elementwise."""
    return optax.losses.huber_loss(pred, target, delta=beta) / beta


DISTANCES = ("smooth_l1", "l2")


def feature_loss(
    pred: Float[ArrayLike, "B T E"],
    target: Float[ArrayLike, "B T E"],
    *,
    beta: float,
    supervised: Float[ArrayLike, "B T"] | None = None,
    distance: str = "smooth_l1",
) -> Float[Array, ""]:
    """Distance of features, mean over supervised tokens and channels (G2SD).

    Args:
        pred: the student's, after its head.
        target: the teacher's; of G2SD and MaskDistill standardised over channels.
        beta: where the quadratic part of smooth_l1 ends; 2.0 in G2SD's recipe.
        supervised: 1 for tokens that count; None counts all of them.
        distance: one of `DISTANCES`; l2 is the square (Proteus).
    """
    target = jax.lax.stop_gradient(target)
    if distance == "l2":
        loss = jnp.square(pred - target).mean(axis=-1)  # [B, T]
    else:
        loss = smooth_l1(pred, target, beta).mean(axis=-1)  # [B, T]
    if supervised is None:
        return loss.mean()
    return (loss * supervised).sum() / supervised.sum()


PAIRS = tuple(a + b for a in "qkv" for b in "qkv")  # Of queries, keys and values.
RELATION_DISTANCES = ("kl", "l2")


def relation_loss(
    student: tuple[Float[ArrayLike, "depth B T D"], ...],
    teacher: tuple[Float[ArrayLike, "teacher_depth B T teacher_D"], ...],
    *,
    groups: int,
    pairs: Sequence[str] = PAIRS,
    distance: str = "kl",
) -> Float32[Array, ""]:
    """Distance of softmaxed relations: of queries to keys they are attention maps.

    Blocks are paired from the first; the shorter list ends the pairing, while the sum
    is divided by the number of student blocks, paired or not (G2SD, never switched on),
    and by the number of pairs. TinyMIM (arXiv 2301.01296) has "qk" and "vv" of one
    block, MAE-Lite (arXiv 2205.14443) "qk" of the last one.

    Args:
        student: queries, keys and values of every block, heads merged, queries without
            their scale.
        teacher: those of the teacher.
        groups: relation groups A, which must divide both widths.
        pairs: of `PAIRS`.
        distance: one of `RELATION_DISTANCES`: KL, or the mean square.
    """
    blocks = min(student[0].shape[0], teacher[0].shape[0])
    total = jnp.float32(0)
    for pair in pairs:
        a, b = ("qkv".index(letter) for letter in pair)
        logits_s = _relation(student[a], student[b], blocks, groups)
        logits_t = _relation(teacher[a], teacher[b], blocks, groups)
        logits_t = jax.lax.stop_gradient(logits_t)
        if distance == "kl":
            apart = _kl(logits_t, logits_s)  # [blocks, B, A, T]
        else:
            maps = (jax.nn.softmax(logits) for logits in (logits_t, logits_s))
            apart = jnp.square(jnp.subtract(*maps)).mean(axis=-1)
        total = total + apart.mean(axis=(1, 2, 3)).sum()
    return total / (len(pairs) * student[0].shape[0])


def _relation(a, b, blocks, groups):
    shape = (blocks, *a.shape[1:3], groups, a.shape[-1] // groups)
    a = a[:blocks].reshape(shape).astype(jnp.float32)
    b = b[:blocks].reshape(shape).astype(jnp.float32)
    return jnp.einsum("lbqgc,lbkgc->lbgqk", a, b) * shape[-1] ** -0.5


def _kl(teacher_logits, student_logits):
    """KL(softmax(teacher) || softmax(student)) over the last axis."""
    log_t = jax.nn.log_softmax(teacher_logits)
    return (jnp.exp(log_t) * (log_t - jax.nn.log_softmax(student_logits))).sum(axis=-1)


ALIGN = {"l1": jnp.abs, "l2": jnp.square}


def align_loss(
    pred: Float[ArrayLike, "B T D"],
    target: Float[ArrayLike, "B T D"],
    *,
    norm: str,
    unit: bool,
) -> Float[Array, ""]:
    """Distance between features of two encoder blocks, mean over everything (DMAE).

    Args:
        pred: the student's, after its projection.
        target: the teacher's.
        norm: l1 or l2, of `ALIGN`.
        unit: scale every token of both to length 1 first, as with a projection.
    """
    target = jax.lax.stop_gradient(target).astype(jnp.float32)
    if unit:
        pred, target = _unit(pred), _unit(target)
    return ALIGN[norm](pred - target).mean()


def _unit(x):
    # The floor is on the norm, as in torch; a zero token stays zero, its gradient too.
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def hard_label(
    logits: Float[ArrayLike, "B C"], teacher_logits: Float[ArrayLike, "B C"]
) -> Float[Array, ""]:
    """Cross-entropy against the teacher's most probable class."""
    return cross_entropy.hard(logits, teacher_logits.argmax(axis=-1))


def soft_kl(
    logits: Float[ArrayLike, "B C"],
    teacher_logits: Float[ArrayLike, "B C"],
    *,
    temperature: float,
) -> Float[Array, ""]:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch."""
    teacher_logits = jax.lax.stop_gradient(teacher_logits) / temperature
    return temperature**2 * _kl(teacher_logits, logits / temperature).mean()


def channel_wise(
    logits: Float[ArrayLike, "B h w C"],
    teacher_logits: Float[ArrayLike, "B h w C"],
    *,
    temperature: float,
    channels: int | None = None,
) -> Float32[Array, ""]:
    """Cross-entropy of every channel's softmax over positions (CWD, as G2SD uses it).

    T^2 sum(-softmax(teacher / T) log softmax(student / T)) / (B C). The entropy of the
    teacher is not subtracted, so the least value is not 0; the gradient is the KL's.

    Args:
        logits: of the student.
        teacher_logits: of the teacher.
        temperature: T, of both softmaxes.
        channels: the divisor C, if it is not that of the logits: the published code
            divides by the channels the student had before a projection to C.
    """
    batch, *_, width = logits.shape
    maps = [
        x.astype(jnp.float32).reshape(batch, -1, width) / temperature
        for x in (logits, jax.lax.stop_gradient(teacher_logits))
    ]
    agreed = jax.nn.softmax(maps[1], axis=1) * jax.nn.log_softmax(maps[0], axis=1)
    return -(temperature**2) * agreed.sum() / (batch * (channels or width))


REDUCTIONS = ("mean", "batch", "sum")


def class_wise(
    logits: Float[ArrayLike, "B h w C"],
    teacher_logits: Float[ArrayLike, "B h w C"],
    *,
    temperature: float,
    reduction: str = "mean",
) -> Float32[Array, ""]:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) over classes, per pixel.

    Args:
        logits: of the student.
        teacher_logits: of the teacher.
        temperature: T.
        reduction: mean divides by all elements, C included, as published (the KL of a
            pixel is C times as large); batch by B; sum by nothing.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    total = _kl(teacher_logits / temperature, logits / temperature).sum()
    divisor = {"mean": logits.size, "batch": len(logits), "sum": 1}[reduction]
    return temperature**2 * total / divisor


def nkd(
    logits: Float[ArrayLike, "B C"],
    teacher_logits: Float[ArrayLike, "B C"],
    label: Integer[ArrayLike, " B"],
    *,
    alpha: float,
    temperature: float,
) -> Float[Array, ""]:
    """Normalised knowledge distillation, target and non-target part (G2SD's option).

    "Other classes" is an explicit mask; the published code blanks whatever equals the
    label's probability, which also blanks entries that underflow.

    Args:
        logits: of the student's class head.
        teacher_logits: of the teacher.
        label: the class whose probability is the target part.
        alpha: weight of the non-target part.
        temperature: of the non-target softmaxes.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    is_label = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)  # [B, C]
    agreed = jax.nn.softmax(teacher_logits) * jax.nn.log_softmax(logits)
    target = -jnp.where(is_label, agreed, 0).sum(axis=-1).mean()

    def others(x):
        return jax.nn.log_softmax(jnp.where(is_label, -jnp.inf, x / temperature))

    cross = jnp.exp(others(teacher_logits)) * jnp.where(is_label, 0, others(logits))
    return target - alpha * temperature**2 * cross.sum(axis=-1).mean()
