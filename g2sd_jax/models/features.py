# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What an encoder makes of whole pictures, block by block: nothing is masked."""

import jax
import jax.numpy as jnp

from g2sd_jax.models import mae, vit

TOKENS = ("patches", "class")


def blocks(model: vit.Vit | mae.Mae, variables: dict, image: jax.Array, token: str):
    """[depth, B, D] float32, the raw stream after every block.

    Args:
        model: a classifier or an autoencoder.
        variables: all of its own.
        image: [B, H, W, C] prepared.
        token: class, or patches for the mean over them.
    """
    return _pick(_run(model, variables, image).taps, model, token)


def last(model: vit.Vit | mae.Mae, variables: dict, image: jax.Array, token: str):
    """[B, D] float32 of the end of the encoder, after its norm where it has one.

    A classifier norms only what its head reads (`model.pool`); the other token is the
    raw stream after the last block.
    """
    out = _run(model, variables, image)
    if isinstance(model, mae.Mae):
        return _pick(out.latent, model, token)
    if token == {"cls": "class", "avg": "patches"}[model.pool]:
        return out.pooled
    return _pick(out.tokens, model, token)


def own_token(model: vit.Vit | mae.Mae) -> str:
    """The token whose features the model was made for."""
    return "class" if getattr(model, "pool", "avg") == "cls" else "patches"


def _run(model, variables, image):
    if isinstance(model, vit.Vit):
        return model.clone(taps=True).apply(variables, image)
    # Parameters of parts that the encoder lacks are not looked at.
    encoder = mae.encoder(model).clone(taps=True)
    return encoder.apply(variables, image, mae.everything(model, len(image)))


def _pick(x, model, token):
    """[..., T, D] -> [..., D]; a distillation token is no patch."""
    x = x.astype(jnp.float32)
    if token == "class":
        return x[..., 0, :]
    end = -1 if getattr(model, "dist_token", False) else None
    return x[..., 1:end, :].mean(axis=-2)
