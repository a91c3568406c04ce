# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a student is asked to match: features, relations, and the teacher's opinion."""

import jax
import jax.numpy as jnp
import optax

from g2sd_jax.losses import cross_entropy


def smooth_l1(pred: jax.Array, target: jax.Array, beta: float) -> jax.Array:
    """d^2 / (2 beta) below beta, |d| - beta / 2 above; elementwise."""
    return optax.losses.huber_loss(pred, target, delta=beta) / beta


def feature_loss(
    pred: jax.Array,
    target: jax.Array,
    *,
    beta: float,
    supervised: jax.Array | None = None,
) -> jax.Array:
    """Smooth-L1 between features, mean over supervised tokens and channels (G2SD).

    Args:
        pred: [B, T, E] the student's, after its head.
        target: [B, T, E] the teacher's, standardised over channels.
        beta: where the quadratic part ends; 2.0 in the published recipe.
        supervised: [B, T] 1 for tokens that count; None counts all of them.
    """
    loss = smooth_l1(pred, jax.lax.stop_gradient(target), beta).mean(axis=-1)  # [B, T]
    if supervised is None:
        return loss.mean()
    return (loss * supervised).sum() / supervised.sum()


def relation_loss(student: tuple, teacher: tuple, *, groups: int) -> jax.Array:
    """KL between softmaxed relations of every ordered pair among q, k and v.

    Blocks are paired from the first; the shorter list ends the pairing, while the sum
    is divided by the number of student blocks, paired or not (G2SD, never switched on).

    Args:
        student: q, k, v, each [depth, B, T, D], heads merged, q without its scale.
        teacher: the same with its own depth and width.
        groups: relation groups A, which must divide both widths.
    """
    blocks = min(student[0].shape[0], teacher[0].shape[0])
    total = jnp.float32(0)
    for a in range(3):
        for b in range(3):
            logits_s = _relation(student[a], student[b], blocks, groups)
            logits_t = _relation(teacher[a], teacher[b], blocks, groups)
            logits_t = jax.lax.stop_gradient(logits_t)
            kl = _kl(logits_t, logits_s)  # [blocks, B, A, T]
            total = total + kl.mean(axis=(1, 2, 3)).sum()
    return total / (9 * student[0].shape[0])


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
    pred: jax.Array, target: jax.Array, *, norm: str, unit: bool
) -> jax.Array:
    """Distance between features of two encoder blocks, mean over everything (DMAE).

    Args:
        pred: [B, T, D] the student's, after its projection.
        target: [B, T, D] the teacher's.
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


def hard_label(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Cross-entropy against the class the teacher would name; both [B, C]."""
    return cross_entropy.hard(logits, teacher_logits.argmax(axis=-1))


def soft_kl(
    logits: jax.Array, teacher_logits: jax.Array, *, temperature: float
) -> jax.Array:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch."""
    teacher_logits = jax.lax.stop_gradient(teacher_logits) / temperature
    return temperature**2 * _kl(teacher_logits, logits / temperature).mean()


def channel_wise(
    logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float,
    channels: int | None = None,
) -> jax.Array:
    """Cross-entropy of every channel's softmax over positions (CWD, as G2SD uses it).

    T^2 sum(-softmax(teacher / T) log softmax(student / T)) / (B C). The entropy of the
    teacher is not subtracted, so the least value is not 0; the gradient is the KL's.

    Args:
        logits: [B, h, w, C].
        teacher_logits: [B, h, w, C].
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
    logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float,
    reduction: str = "mean",
) -> jax.Array:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) over classes, per pixel.

    Args:
        logits: [B, h, w, C].
        teacher_logits: [B, h, w, C].
        temperature: T.
        reduction: mean divides by all elements, C included, as published (the KL of a
            pixel is C times as large); batch by B; sum by nothing.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    total = _kl(teacher_logits / temperature, logits / temperature).sum()
    divisor = {"mean": logits.size, "batch": len(logits), "sum": 1}[reduction]
    return temperature**2 * total / divisor


def nkd(
    logits: jax.Array,
    teacher_logits: jax.Array,
    label: jax.Array,
    *,
    alpha: float,
    temperature: float,
) -> jax.Array:
    """Normalised knowledge distillation, target and non-target part (G2SD's option).

    "Other classes" is an explicit mask; the published code blanks whatever equals the
    label's probability, which also blanks entries that underflow.

    Args:
        logits: [B, C] of the student's class head.
        teacher_logits: [B, C].
        label: [B] the class whose probability is the target part.
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
