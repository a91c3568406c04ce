# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The finished network once more, in plain arrays: what exported programs compute.

It reads a state dict by its PyTorch names and uses nothing that a converter to another
format has to know about: no module, no loop, no choice by platform unless one is given.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax.ops import patches
from g2sd_jax.weights import architecture

LN_EPS = 1e-6


def program(
    arrays: Mapping[str, np.ndarray],
    shape: architecture.Architecture,
    *,
    readout: str,
    mean: tuple,
    std: tuple,
    attention: Callable | None = None,
) -> Callable:
    """image [B, H, W, C] uint8 -> logits [B, classes]; of an encoder tokens [B, T, D].

    Args:
        arrays: by PyTorch name.
        shape: theirs; with heads and grid.
        readout: cls, dist or mean: which head, or heads, answer.
        mean: of each channel, for pixels in 0..1.
        std: likewise.
        attention: q, k, v [B, T, h, d] each -> the same; `softmax_attention` if None.
    """
    attend = attention or softmax_attention
    held = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    centre, spread = (np.float32(v).reshape(1, 1, 1, -1) for v in (mean, std))

    def linear(x, name):
        weight, bias = held[f"{name}.weight"], held[f"{name}.bias"]
        bias = bias.reshape((1,) * (x.ndim - 1) + bias.shape)
        return x @ np.ascontiguousarray(weight.T) + bias

    def norm(x, name):
        shape = (1,) * (x.ndim - 1) + (-1,)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + LN_EPS)
        scale, bias = (held[f"{name}.{leaf}"].reshape(shape) for leaf in LEAVES)
        return x * scale + bias

    def block(x, name):
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        heads = (*x.shape[:2], shape.heads, shape.width // shape.heads)
        seen = attend(*(part.reshape(heads) for part in jnp.split(qkv, 3, -1))).reshape(
            x.shape
        )
        x = x + linear(seen, f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + linear(jax.nn.gelu(hidden, approximate=False), f"{name}.mlp.fc2")

    def tokens(image):
        x = (image.astype(jnp.float32) / 255 - centre) / spread
        kernel = held["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
        kernel = kernel.reshape(-1, shape.width)
        x = patches.patchify(x, shape.patch) @ kernel  # [B, N, D]
        x = x + held["patch_embed.proj.bias"].reshape(1, 1, -1)
        x = jnp.concatenate([repeat("cls_token", x), x], axis=1) + held["pos_embed"]
        if shape.dist_token:
            x = jnp.concatenate([x, repeat("dist_token", x)], axis=1)
        for index in range(shape.depth):
            x = block(x, f"blocks.{index}")
        return x

    def repeat(name, x):
        return jnp.broadcast_to(held[name], (x.shape[0], 1, shape.width))

    def encode(image):
        return norm(tokens(image), "norm")

    def classify(image):
        x = tokens(image)
        if shape.pool == "cls":
            x = norm(x, "norm")
            first, last = x[:, 0], x[:, -1]
        else:
            count = held["pos_embed"].shape[1]
            first = norm(x[:, 1:count].mean(axis=1), "fc_norm")
            last = norm(x[:, -1], "fc_norm")
        answers = []
        if readout in ("cls", "mean"):
            answers.append(linear(first, "head"))
        if readout in ("dist", "mean"):
            answers.append(linear(last, "head_dist"))
        return sum(answers) / len(answers)

    return classify if shape.classes else encode


LEAVES = ("weight", "bias")


def softmax_attention(q, k, v):
    """softmax(q k^T / sqrt(d)) v of [B, T, h, d] each, the same back."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # [B, h, T, d]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(0, 1, 3, 2)
    return (jax.nn.softmax(scores, axis=-1) @ v).transpose(0, 2, 1, 3)
