# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What every ViT here is made of: patch embedding, attention, MLP, the block, a stack.

Submodules carry PyTorch's names (`attn.qkv`, `mlp.fc1`), so that a path in the tree is
a name in a state dict. A stack keeps its blocks as one set of leaves with a leading
[depth] axis, whether the compiled program loops over them or unrolls them.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from g2sd_jax import core
from g2sd_jax.ops import attention, relative

LN_EPS = 1e-6  # PyTorch's default is 1e-5; the papers' models all use this.

xavier = nn.initializers.xavier_uniform()  # On the fused qkv: sqrt(6 / 4D).
# timm's truncation at +-2 is a hundred sigma away, so this is the same distribution.
normal02 = nn.initializers.normal(0.02)

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def machine(config) -> dict:
    """The keys of a recipe that choose how a model computes, not what."""
    core.lookup("config.remat", config.remat, REMAT)
    dtype = core.lookup("config.compute_dtype", config.compute_dtype, DTYPES)
    return dict(dtype=dtype, scan=config.scan, remat=config.remat)


class Stack(NamedTuple):
    """What a stack of blocks gives back; the last two only where asked for."""

    last: jax.Array  # [B, T, D] raw residual stream after the last block
    taps: jax.Array | None  # [depth, B, T, D] the same after every block
    qkv: tuple | None  # three of [depth, B, T, D], heads merged, q unscaled


def uniform(bound: float) -> Callable:
    """U(-bound, bound): PyTorch's default for a layer of fan-in 1 / bound^2."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_norm(name: str | None = None) -> nn.LayerNorm:
    # The two-pass variance: E[x^2] - E[x]^2 loses digits that the goldens see.
    return nn.LayerNorm(LN_EPS, dtype=jnp.float32, use_fast_variance=False, name=name)


def standardise(x: jax.Array, eps: float = LN_EPS) -> jax.Array:
    """LayerNorm over the last axis, without scale or bias, in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)


class PatchEmbed(nn.Module):
    """A p x p stride-p convolution, as the matrix product it is."""

    patch: int
    channels: int
    width: int
    xavier: bool  # MAE's initialisation; else PyTorch's default for a convolution
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:  # [B, K, P] -> [B, K, D]
        fan_in = self.patch * self.patch * self.channels
        bound = fan_in**-0.5
        kernel_bound = (6 / (fan_in + self.width)) ** 0.5 if self.xavier else bound
        shape = (self.patch, self.patch, self.channels, self.width)
        kernel = self.param("kernel", uniform(kernel_bound), shape)
        bias = self.param("bias", uniform(bound), (self.width,))
        kernel = kernel.reshape(fan_in, self.width).astype(self.dtype)
        return patches.astype(self.dtype) @ kernel + bias.astype(self.dtype)[None, None]


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv; returns its q, k, v as well."""

    heads: int
    kernel_init: Callable
    dtype: jnp.dtype = jnp.float32
    relative_grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array):
        batch, tokens, width = x.shape
        dense = lambda features, name: nn.Dense(
            features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
        )
        qkv = dense(3 * width, "qkv")(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        shape = (batch, tokens, self.heads, width // self.heads)
        bias = None
        if self.relative_grid:
            table = self.param(
                "relative_position_bias_table",
                nn.initializers.zeros,
                (relative.rows(self.relative_grid), self.heads),
            )
            bias = relative.bias(table.astype(jnp.float32), self.relative_grid)
        out = attention.attention(*(x.reshape(shape) for x in (q, k, v)), bias)
        return dense(width, "proj")(out.reshape(x.shape)), (q, k, v)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics.

    Under jit the mean is over the global batch, so this is what others call SyncBN. The
    batch is normalised by its biased variance while the running one collects the
    unbiased, which Flax's own module does not.
    """

    eps: float = 1e-5
    affine: bool = True
    momentum: float = 0.1  # Share of the new batch in the running statistics.

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B, ..., D], normalised over all but the last axis, in float32."""
        x = x.astype(jnp.float32)
        width = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        var = self.variable("batch_stats", "var", jnp.ones, width)
        used = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            used = x.mean(axis=axes), x.var(axis=axes)
            if not self.is_initializing():
                unbiased = used[1] * (count / (count - 1))
                mean.value += self.momentum * (used[0] - mean.value)
                var.value += self.momentum * (unbiased - var.value)
        shape = (1,) * (x.ndim - 1) + width
        centre, spread = (statistic.reshape(shape) for statistic in used)
        x = (x - centre) * jax.lax.rsqrt(spread + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, width)
            bias = self.param("bias", nn.initializers.zeros, width)
            x = x * scale.reshape(shape) + bias.reshape(shape)
        return x


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    hidden: int
    width: int
    kernel_init: Callable
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = lambda features, name: nn.Dense(
            features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
        )
        return dense(self.width, "fc2")(
            nn.gelu(dense(self.hidden, "fc1")(x), approximate=False)
        )


class Block(nn.Module):
    """Pre-norm transformer block, as the body of a loop over `depth`."""

    heads: int
    mlp_ratio: float
    kernel_init: Callable
    dtype: jnp.dtype = jnp.float32
    taps: bool = False
    relations: bool = False
    relative_grid: tuple[int, int] | None = None
    layer_scale: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None):
        """x [B, T, D]; keep [2, B]: what each residual branch is multiplied with."""
        width = x.shape[-1]
        attn = Attention(
            self.heads, self.kernel_init, self.dtype, self.relative_grid, name="attn"
        )
        mlp = Mlp(
            int(width * self.mlp_ratio), width, self.kernel_init, self.dtype, name="mlp"
        )
        branch, qkv = attn(layer_norm("norm1")(x))
        x = x + _dropped(self._scaled(branch, "gamma_1"), keep, 0)
        branch = mlp(layer_norm("norm2")(x))
        x = x + _dropped(self._scaled(branch, "gamma_2"), keep, 1)
        return x, (x if self.taps else None, qkv if self.relations else None)

    def _scaled(self, branch, name):
        if self.layer_scale is None:
            return branch
        init = nn.initializers.constant(self.layer_scale)
        gamma = self.param(name, init, branch.shape[-1:])
        return branch * gamma.astype(branch.dtype)[None, None]


def _dropped(branch, keep, which):
    if keep is None:
        return branch
    return branch * keep[which].astype(branch.dtype)[:, None, None]


def drop_path(noise: jax.Array | None, rate: float) -> jax.Array | None:
    """Stochastic depth per sample: survivors are divided by the keep probability.

    Args:
        noise: [B, depth, 2] uniform; None at inference.
        rate: that of the last block; the first has 0, linear between.
    Returns:
        [depth, 2, B] multipliers of the residual branches, or None if nothing drops.
    """
    if noise is None or rate == 0.0:
        return None
    depth = noise.shape[1]
    rates = jnp.linspace(0.0, rate, depth)[:, None, None]
    return jnp.where(noise.transpose(1, 2, 0) >= rates, 1 / (1 - rates), 0.0)


def stack(
    x: jax.Array,
    keep: jax.Array | None = None,
    *,
    depth: int,
    heads: int,
    name: str,
    mlp_ratio: float = 4.0,
    kernel_init: Callable = xavier,
    dtype: jnp.dtype = jnp.float32,
    scan: bool = True,
    remat: str = "none",
    taps: bool = False,
    relations: bool = False,
    relative_grid: tuple[int, int] | None = None,
    layer_scale: float | None = None,
) -> Stack:
    """`depth` blocks on x [B, T, D], called inside a module's `@nn.compact`.

    `scan` compiles one block and loops over it, which compiles faster and keeps fewer
    buffers alive; unrolled, the compiler sees them all. The parameters are the same.
    With `relative_grid`, the tokens are a class token and the patches of that grid, and
    every block has a table of relative positions; with `layer_scale`, every residual
    branch a learned factor per channel that starts there.
    """
    block = Block
    if remat != "none":
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=not scan)
    blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=depth,
        unroll=1 if scan else depth,
    )
    blocks = blocks(
        heads,
        mlp_ratio,
        kernel_init,
        dtype,
        taps,
        relations,
        relative_grid,
        layer_scale,
        name=name,
    )
    x, (taps, qkv) = blocks(x, keep)
    return Stack(x, taps, qkv)
