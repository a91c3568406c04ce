# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The vision transformer once more, in basic operations that jax2onnx converts.

It reads a state dict by its PyTorch names and uses no module, no loop and no choice by
platform; `--format=stablehlo` exports the module itself (`programs.network`).
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax.ops import patches
from g2sd_jax.weights import architecture


def program(
    arrays: Mapping[str, np.ndarray],
    shape: architecture.Architecture,
    *,
    readout: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[jax.Array], jax.Array]:
    """Builds the forward pass of a classifier or encoder.

    Args:
        arrays: by PyTorch name.
        shape: of `arrays`; with heads and grid.
        readout: cls, dist or mean: the head, or heads, whose logits count.
        mean: of each channel, for pixels in 0..1.
        std: likewise.
    Returns:
        image [B, H, W, C] uint8 -> logits [B, classes], or of an encoder its normed
        tokens [B, T, D].
    """
    params = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    centre, spread = (np.float32(v).reshape(1, 1, 1, -1) for v in (mean, std))

    def linear(x, name):
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        bias = bias.reshape((1,) * (x.ndim - 1) + bias.shape)
        return x @ np.ascontiguousarray(weight.T) + bias

    def norm(x, name):
        broadcast = (1,) * (x.ndim - 1) + (-1,)
        scale = params[f"{name}.weight"].reshape(broadcast)
        bias = params[f"{name}.bias"].reshape(broadcast)
        x = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(x).mean(axis=-1, keepdims=True)
        return x / jnp.sqrt(variance + shape.norm_eps) * scale + bias

    def block(x, name):
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        heads = (*x.shape[:2], shape.heads, shape.width // shape.heads)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, -1))
        attended = softmax_attention(q, k, v).reshape(x.shape)
        x = x + linear(attended, f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + linear(jax.nn.gelu(hidden, approximate=False), f"{name}.mlp.fc2")

    def tokens(image):
        x = (image.astype(jnp.float32) / 255 - centre) / spread
        kernel = params["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
        kernel = kernel.reshape(-1, shape.width)
        x = patches.patchify(x, shape.patch) @ kernel  # [B, N, D]
        x = x + params["patch_embed.proj.bias"].reshape(1, 1, -1)
        x = jnp.concatenate([repeat("cls_token", x), x], axis=1) + params["pos_embed"]
        if shape.dist_token:
            x = jnp.concatenate([x, repeat("dist_token", x)], axis=1)
        for index in range(shape.depth):
            x = block(x, f"blocks.{index}")
        return x

    def repeat(name, x):
        return jnp.broadcast_to(params[name], (x.shape[0], 1, shape.width))

    def encode(image):
        return norm(tokens(image), "norm")

    def classify(image):
        x = tokens(image)
        if shape.pool == "cls":
            x = norm(x, "norm")
            first, last = x[:, 0], x[:, -1]
        else:
            count = params["pos_embed"].shape[1]
            first = norm(x[:, 1:count].mean(axis=1), "fc_norm")
            last = norm(x[:, -1], "fc_norm")
        logits = []
        if readout in ("cls", "mean"):
            logits.append(linear(first, "head"))
        if readout in ("dist", "mean"):
            logits.append(linear(last, "head_dist"))
        return sum(logits) / len(logits)

    return classify if shape.classes else encode


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of [B, T, h, d] each, the same back."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # [B, h, T, d]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(0, 1, 3, 2)
    return (jax.nn.softmax(scores, axis=-1) @ v).transpose(0, 2, 1, 3)
