# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropies between logits and soft or integer targets."""

import jax
import jax.numpy as jnp
import optax


def soft(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over the batch of -sum_c target log softmax(logits); both [B, C]."""
    return optax.losses.softmax_cross_entropy(logits, target).mean()


def hard(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits [B, C] against labels [B]."""
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return loss(logits, label).mean()


def accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Share of rows of logits [B, C] whose largest entry is label [B]."""
    return (logits.argmax(axis=-1) == label).astype(jnp.float32).mean()
