# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropies between logits and soft or integer targets, of images or pixels."""

import jax
import jax.numpy as jnp
import optax

from g2sd_jax.ops import resize

IGNORED = 255  # Of a label map.
DIVISORS = ("all", "valid")


def soft(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over the batch of -sum_c target log softmax(logits); both [B, C]."""
    return optax.losses.softmax_cross_entropy(logits, target).mean()


def hard(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits [B, C] against labels [B]."""
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return loss(logits, label).mean()


def accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Share of rows of logits [..., C] whose largest entry is label [...]."""
    return (logits.argmax(axis=-1) == label).astype(jnp.float32).mean()


def pixels(
    logits: jax.Array, label_map: jax.Array, *, divisor: str = "all"
) -> jax.Array:
    """Mean cross-entropy of the pixels of label maps; ignored ones add nothing.

    Args:
        logits: [B, h, w, C], resized to the label maps.
        label_map: [B, H, W] classes, `IGNORED` for none.
        divisor: all divides by every pixel, ignored or not (mmsegmentation 0.11, behind
            the published numbers), valid by those that count. Both are 0 where none do.
    """
    valid = label_map != IGNORED
    logits = resize.bilinear(logits, label_map.shape[1:])
    # A comparison instead of a gather, whose gradient would be a scattered sum.
    classes = jnp.arange(logits.shape[-1])[None, None, None]
    chosen = jnp.where(label_map[..., None] == classes, logits, 0).sum(axis=-1)
    # A label beyond the last class has no logit: NaN stops the run.
    chosen = jnp.where(label_map < logits.shape[-1], chosen, jnp.nan)
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    total = jnp.where(valid, loss, 0).sum()
    count = valid.size if divisor == "all" else jnp.maximum(valid.sum(), 1)
    return total / count


def pixel_accuracy(logits: jax.Array, label_map: jax.Array) -> jax.Array:
    """Share of all pixels whose largest logit is their label; an ignored one is wrong.

    Args:
        logits: [B, h, w, C], resized to the label maps.
        label_map: [B, H, W] classes, `IGNORED` for none.
    """
    return accuracy(resize.bilinear(logits, label_map.shape[1:]), label_map)
