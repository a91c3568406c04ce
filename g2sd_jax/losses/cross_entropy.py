# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropies between logits and soft or integer targets, of images or pixels."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Integer

from g2sd_jax import label_values
from g2sd_jax.ops import resize

DIVISORS = ("all", "valid")


def soft(
    logits: Float[ArrayLike, "B C"], target: Float[ArrayLike, "B C"]
) -> Float[Array, ""]:
    """Mean over the batch of -sum_c target log softmax(logits)."""
    return optax.losses.softmax_cross_entropy(logits, target).mean()


def hard(
    logits: Float[ArrayLike, "B C"], label: Integer[ArrayLike, " B"]
) -> Float[Array, ""]:
    """Mean over the batch of -log softmax(logits)[label]."""
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return loss(logits, label).mean()


def accuracy(
    logits: Float[ArrayLike, "*shape C"], label: Integer[ArrayLike, "*shape"]
) -> Float32[Array, ""]:
    """Share of the rows whose largest logit is the label's."""
    return (logits.argmax(axis=-1) == label).astype(jnp.float32).mean()


def pixels(
    logits: Float[ArrayLike, "B h w C"],
    label_map: Integer[ArrayLike, "B H W"],
    *,
    divisor: str = "all",
) -> Float[Array, ""]:
    """Mean cross-entropy of the pixels of label maps; ignored ones add nothing.

    Args:
        logits: resized to the label maps.
        label_map: classes, `label_values.IGNORED` for none.
        divisor: all divides by every pixel, ignored or not (mmsegmentation 0.11, behind
            the published numbers), valid by those that count. Both are 0 where none do.
    """
    valid = label_map != label_values.IGNORED
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


def pixel_accuracy(
    logits: Float[ArrayLike, "B h w C"], label_map: Integer[ArrayLike, "B H W"]
) -> Float32[Array, ""]:
    """Share of the pixels whose largest logit is their label's; ignored ones are wrong.

    Args:
        logits: resized to the label maps.
        label_map: classes, `label_values.IGNORED` for none.
    """
    return accuracy(resize.bilinear(logits, label_map.shape[1:]), label_map)
