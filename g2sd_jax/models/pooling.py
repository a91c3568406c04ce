# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Attention pooling: a learned query reads one vector out of all tokens (SigLIP)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32

from g2sd_jax.models import layers, variants
from g2sd_jax.ops import attention


class AttentionPool(nn.Module):
    """Cross-attention of one learned query, then an MLP with a residual branch."""

    heads: int
    hidden: int  # Width of the MLP.
    norm_eps: float
    variant: variants.Variant  # Its activation.
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B T D"]) -> Float32[Array, "B D"]:
        """Pools the normed tokens."""
        batch, _, width = x.shape
        dense = lambda features, name: nn.Dense(
            features, dtype=self.dtype, kernel_init=layers.normal02, name=name
        )
        latent = self.param("latent", layers.normal02, (1, 1, width))
        query = dense(width, "q")(jnp.broadcast_to(latent, (batch, 1, width)))
        key, value = jnp.split(dense(2 * width, "kv")(x), 2, axis=-1)
        per_head = (
            part.reshape(batch, -1, self.heads, width // self.heads)
            for part in (query, key, value)
        )
        pooled = attention.attention(*per_head).reshape(batch, 1, width)
        pooled = dense(width, "proj")(pooled)
        mlp_variant = variants.PLAIN._replace(activation=self.variant.activation)
        mlp = layers.Mlp(
            self.hidden,
            width,
            layers.normal02,
            self.dtype,
            variant=mlp_variant,
            name="mlp",
        )
        pooled = pooled + mlp(layers.layer_norm("norm", self.norm_eps)(pooled))
        return pooled[:, 0].astype(jnp.float32)
