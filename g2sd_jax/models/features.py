# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Features of an encoder that sees every patch, block by block."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from g2sd_jax.models import mae, variants, vit

TOKENS = ("patches", "class")
POOLED = {"cls": "class", "avg": "patches"}  # What a pool is the features of.


def blocks(
    model: vit.Vit | mae.Mae,
    variables: Mapping[str, Any],
    image: Float[ArrayLike, "B H W c"],
    token: str,
) -> Float32[Array, "depth B D"]:
    """Computes the raw stream after every block.

    Args:
        model: a classifier or an autoencoder.
        variables: all of the model's.
        image: normalised.
        token: class, or patches for the mean over them.
    """
    return _pick(_run(model, variables, image).taps, model, token)


def last(
    model: vit.Vit | mae.Mae,
    variables: Mapping[str, Any],
    image: Float[ArrayLike, "B H W c"],
    token: str,
) -> Float32[Array, "B D"]:
    """Computes the encoder's output, after its norm where it has one.

    A classifier norms only the token that its head reads (`model.pool`); the other one
    is the raw stream after the last block. Of an encoder that is no plain ViT all
    tokens are normed. The arguments are those of `blocks`.
    """
    out = _run(model, variables, image)
    if isinstance(model, mae.Mae):
        return _pick(out.latent, model, token)
    if token == POOLED.get(model.pool):
        return out.pooled
    foreign = model.variant != variants.PLAIN
    return _pick(out.normed if foreign else out.tokens, model, token)


def default_token(model: vit.Vit | mae.Mae) -> str:
    """Returns the token whose features the model was made for."""
    return "class" if getattr(model, "pool", "avg") == "cls" else "patches"


def _run(model, variables, image):
    if isinstance(model, vit.Vit):
        return model.clone(taps=True).apply(variables, image)
    # Parameters of parts that the encoder lacks are ignored.
    encoder = mae.encoder(model).clone(taps=True)
    return encoder.apply(variables, image, mae.no_masking(model, len(image)))


def _pick(x, model, token):
    """[..., T, D] -> [..., D]; a distillation token is no patch."""
    x = x.astype(jnp.float32)
    variant = getattr(model, "variant", variants.PLAIN)
    if token == "class":
        if not variant.class_token:
            raise ValueError("--token=class: this encoder has no class token.")
        return x[..., 0, :]
    end = -1 if getattr(model, "dist_token", False) else None
    return x[..., variant.prefix : end, :].mean(axis=-2)
