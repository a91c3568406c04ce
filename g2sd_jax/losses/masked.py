# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder's reconstruction loss (MAE, section 3)."""

import jax
import jax.numpy as jnp


def normalise_patches(target: jax.Array) -> jax.Array:
    """Each patch vector [..., P] by its own mean and unbiased variance (+ 1e-6)."""
    mean = target.mean(axis=-1, keepdims=True)
    variance = target.var(axis=-1, keepdims=True, ddof=1)
    return (target - mean) * jax.lax.rsqrt(variance + 1e-6)


def masked_pixel_loss(
    pred: jax.Array, target: jax.Array, removed: jax.Array
) -> jax.Array:
    """Mean squared error over the patches the student did not see.

    Args:
        pred: [B, N, P] predicted pixels of every patch.
        target: [B, N, P] true pixels, already normalised if the stage asks for it.
        removed: [B, N] 1 where the patch was hidden, else 0.
    """
    per_patch = jnp.square(pred - target).mean(axis=-1)  # [B, N]
    return (per_patch * removed).sum() / removed.sum()
