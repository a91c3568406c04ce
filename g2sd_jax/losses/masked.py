# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder's reconstruction loss (MAE, section 3)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def normalise_patches(target: Float[ArrayLike, "*shape P"]) -> Float[Array, "*shape P"]:
    """Normalises each patch by its own mean and unbiased variance (+ 1e-6)."""
    mean = target.mean(axis=-1, keepdims=True)
    variance = target.var(axis=-1, keepdims=True, ddof=1)
    return (target - mean) * jax.lax.rsqrt(variance + 1e-6)


def masked_pixel_loss(
    pred: Float[ArrayLike, "B N P"],
    target: Float[ArrayLike, "B N P"],
    removed: Float[ArrayLike, "B N"],
) -> Float[Array, ""]:
    """Mean squared error over the patches that were hidden.

    Args:
        pred: predicted pixels of every patch.
        target: true pixels, already normalised if the stage asks for it.
        removed: 1 where the patch was hidden, else 0.
    """
    per_patch = jnp.square(pred - target).mean(axis=-1)  # [B, N]
    return (per_patch * removed).sum() / removed.sum()
