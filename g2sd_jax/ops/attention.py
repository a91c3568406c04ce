# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Softmax attention, with the form that was measured to be fastest on each platform.

All forms compute the softmax in float32 and agree with each other (tested).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike
from jaxtyping import Float, Float32

LONG = 128  # Tokens from which the maps of all heads do not stay on a TPU's chip.
KEPT = "attention"  # The name, for policies of rematerialisation, of its residuals.


def attention(
    q: Float[ArrayLike, "B T h d"],
    k: Float[ArrayLike, "B S h d"],
    v: Float[ArrayLike, "B S h d"],
    bias: Float32[ArrayLike, "h T S"] | None = None,
    form: str = "auto",
) -> Float[ArrayLike, "B T h d"]:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: query by key, shared by the batch; None adds nothing.
        form: one of `FORMS`. With auto it is chosen while lowering, so a program
            compiled here for a TPU gets the TPU's.
    """
    if form != "auto":
        return FORMS[form](q, k, v, bias)
    tokens = q.shape[1]
    cpu, tpu = (FORMS[choose(platform, tokens)] for platform in ("cpu", "tpu"))
    return jax.lax.platform_dependent(
        q, k, v, bias, cpu=cpu, tpu=tpu, default=tokens_first
    )


def choose(platform: str, tokens: int) -> str:
    """Returns the name of the form that auto takes.

    On a GPU it is XLA's: cuDNN's (config.attention=cudnn) was not measured beside it.

    Args:
        platform: as programs are lowered for: cpu, tpu, cuda.
        tokens: T.
    """
    if platform == "cpu":
        return "heads"
    return "loop" if platform == "tpu" and tokens >= LONG else "xla"


def tokens_first(
    q: Float[ArrayLike, "B T h d"],
    k: Float[ArrayLike, "B S h d"],
    v: Float[ArrayLike, "B S h d"],
    bias: Float32[ArrayLike, "h T S"] | None = None,
) -> Float[ArrayLike, "B T h d"]:
    """Computes it in XLA's own form."""
    if bias is not None:
        bias = bias[None]
    return jax.nn.dot_product_attention(q, k, v, bias, implementation="xla")


def cudnn(
    q: Float[ArrayLike, "B T h d"],
    k: Float[ArrayLike, "B S h d"],
    v: Float[ArrayLike, "B S h d"],
    bias: Float32[ArrayLike, "h T S"] | None = None,
) -> Float[ArrayLike, "B T h d"]:
    """Computes it in one kernel of cuDNN, which keeps no [B, h, T, T] array.

    It takes half precision, heads of a multiple of 8 channels, and with a bias an even
    number of tokens.

    Raises:
        ValueError: it can not compute these arrays, or not on this machine.
    """
    refusal = _refusal(q.dtype, q.shape[-1], bias is not None and q.shape[1] % 2)
    if refusal:
        raise ValueError(
            f"config.attention=cudnn: {refusal}; use config.attention=auto."
        )
    if bias is not None:
        bias = bias[None].astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias, implementation="cudnn")


def _refusal(dtype, head_dim, odd_bias) -> str:
    """Why cuDNN's kernel can not be used; "" where it can."""
    client = jax.devices()[0].client
    if "cuda" not in client.platform_version.lower():
        return f"cuDNN is for NVIDIA GPUs, and this is a {client.platform}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in half precision, not in {jnp.dtype(dtype)}"
    if head_dim % 8:
        return f"cuDNN takes heads of a multiple of 8 channels, not of {head_dim}"
    return "cuDNN adds a bias to even numbers of tokens alone" if odd_bias else ""


@jax.custom_vjp
def heads_first(
    q: Float[ArrayLike, "B T h d"],
    k: Float[ArrayLike, "B S h d"],
    v: Float[ArrayLike, "B S h d"],
    bias: Float32[ArrayLike, "h T S"] | None = None,
) -> Float[ArrayLike, "B T h d"]:
    """Computes it with heads before tokens: every product is a plain batched matmul.

    For CPUs, where XLA's own form loses time in strided products and in [B, h, T, T]
    arrays that are kept for the gradient; here those are made anew from the logarithm
    of the softmax's sum. On 2 cores, [16, 197, 8, 32]: 3.4 instead of 10.7 ms, 19
    instead of 32 with the gradient.
    """
    return _forward(q, k, v, bias)[0]


def _forward(q, k, v, bias):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, h, T, d]
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    logits = _logits(scaled, k, bias)
    largest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    # Divided after the value product: one pass less over [B, h, T, T].
    out = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v) / total
    out = checkpoint_name(out.astype(v.dtype), KEPT)
    log_total = checkpoint_name(largest + jnp.log(total), KEPT)
    return out.swapaxes(1, 2), (scaled, k, v, bias, out, log_total)


def _logits(scaled, k, bias):
    logits = _product("bhqd,bhkd->bhqk", scaled, k)
    return logits if bias is None else logits + bias[None]


def _backward(residuals, g):
    scaled, k, v, bias, out, log_total = residuals
    g = g.swapaxes(1, 2)
    weights = jnp.exp(_logits(scaled, k, bias) - log_total)
    inner = (g.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    dlogits = weights * (_product("bhqd,bhkd->bhqk", g, v) - inner)
    dbias = None if bias is None else dlogits.sum(axis=0)
    weights, dlogits = weights.astype(v.dtype), dlogits.astype(v.dtype)
    dq = _product("bhqk,bhkd->bhqd", dlogits, k) * scaled.shape[-1] ** -0.5
    # Asked for as [B, h, d, T]: transposing those is cheaper than [B, h, T, T].
    dk = _product("bhqd,bhqk->bhdk", scaled, dlogits).swapaxes(2, 3)
    dv = _product("bhqd,bhqk->bhdk", g, weights).swapaxes(2, 3)
    return *(x.swapaxes(1, 2).astype(v.dtype) for x in (dq, dk, dv)), dbias


def head_by_head(
    q: Float[ArrayLike, "B T h d"],
    k: Float[ArrayLike, "B S h d"],
    v: Float[ArrayLike, "B S h d"],
    bias: Float32[ArrayLike, "h T S"] | None = None,
) -> Float[ArrayLike, "B T h d"]:
    """Computes `heads_first` in a loop over the heads.

    For TPUs: the [B, 1, T, T] arrays of one head stay on the chip, where those of all
    heads go to main memory and come back. With gradient, bfloat16, [64, 197, 16, 32],
    compiled for a v5e: 4.0 instead of 18.7 MB an image.
    """

    def head(_, arrays):
        return None, heads_first(*arrays)

    apart = [jnp.moveaxis(x, 2, 0)[:, :, :, None] for x in (q, k, v)]  # [h, B, T, 1, d]
    if bias is not None:
        apart.append(bias[:, None])
    _, out = jax.lax.scan(head, None, tuple(apart))
    return jnp.moveaxis(out[:, :, :, 0], 0, 2)


def _product(letters, a, b):
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


heads_first.defvjp(_forward, _backward)

FORMS: dict[str, Callable | None] = {
    "auto": None,
    "xla": tokens_first,
    "heads": heads_first,
    "loop": head_by_head,
    "cudnn": cudnn,
}
