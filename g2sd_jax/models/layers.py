# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that every ViT here shares: patch embedding, attention, MLP, block, stack.

Submodules carry PyTorch's names (`attn.qkv`, `mlp.fc1`), so that a path in the tree is
a name in a state dict. A stack keeps its blocks as one set of leaves with a leading
[depth] axis, whether the compiled program loops over them or unrolls them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.models import variants
from g2sd_jax.ops import attention, relative, rotary

LN_EPS = 1e-6  # PyTorch's default is 1e-5; the papers' models all use this.

xavier = nn.initializers.xavier_uniform()  # On the fused qkv: sqrt(6 / 4D).
# timm's truncation at +-2 is a hundred sigma away, so this is the same distribution.
normal02 = nn.initializers.normal(0.02)

# What a block keeps for the backward pass, beside its input: whatever the derivative
# reads; the outputs of its products; those, and attention's; nothing.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(
        "qkv", attention.KEPT, "proj", "fc1"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
# The values of config.remat=auto. On a TPU a step waits for memory sooner than for its
# products, so what norms, GELU and softmax leave behind is made again there
# (docs/plan.md); it was not tried by the clock on CPUs and GPUs.
REMAT_OF = {"cpu": "none", "gpu": "none", "tpu": "products"}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_options(config: ConfigDict) -> dict[str, Any]:
    """Reads the fields of a module that choose how it computes.

    They are dtype, scan, remat and attention; none changes what is computed.
    """
    remat = on_platform(config, jax.default_backend()).remat
    errors.lookup("config.remat", remat, {**REMAT, "auto": None})
    dtype = errors.lookup("config.compute_dtype", config.compute_dtype, DTYPES)
    form = config.get("attention", "auto")  # Runs from before the key lack it.
    errors.lookup("config.attention", form, attention.FORMS)
    return dict(dtype=dtype, scan=config.scan, remat=remat, attention=form)


def on_platform(config: ConfigDict, platform: str) -> ConfigDict:
    """Returns the config with the choices of a platform in place of `auto`.

    Attention is not among them: its form is chosen while lowering.

    Args:
        config: of a recipe.
        platform: cpu, gpu, tpu; of devices that may not be here.
    """
    if config.remat != "auto":
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.remat = REMAT_OF.get(platform, "none")
    return config


def cut(target: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Selects from `source` what `target` has, of a longer stack the first blocks.

    Args:
        target: a tree of arrays or shapes.
        source: the variables of a whole model.
    """

    def select(target, source):
        if isinstance(target, Mapping):
            return {name: select(target[name], source[name]) for name in target}
        return source[: target.shape[0]] if target.shape != source.shape else source

    return select(target, source)


class Stack(NamedTuple):
    """The outputs of a stack of blocks; the last two only where asked for."""

    last: Float[Array, "B T D"]  # Raw residual stream after the last block.
    taps: Float[Array, "depth B T D"] | None  # After every block.
    qkv: tuple[Float[Array, "depth B T D"], ...] | None  # Heads merged, q unscaled.


def uniform(bound: float) -> Callable[..., Array]:
    """Initialises by U(-bound, bound), PyTorch's default for a fan-in of bound^-2."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_norm(name: str | None = None, eps: float = LN_EPS) -> nn.LayerNorm:
    """Builds the layer normalisation of every module, computed in float32."""
    # The two-pass variance: E[x^2] - E[x]^2 loses digits that the goldens see.
    return nn.LayerNorm(eps, dtype=jnp.float32, use_fast_variance=False, name=name)


def standardise(
    x: Float[ArrayLike, "*shape D"], eps: float = LN_EPS
) -> Float32[Array, "*shape D"]:
    """Normalises the last axis like a layer norm, without scale or bias."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)


class PatchEmbed(nn.Module):
    """A p x p stride-p convolution, as the matrix product it is."""

    patch: int
    channels: int
    width: int
    xavier: bool  # MAE's initialisation; else PyTorch's default for a convolution
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, patches: Float[ArrayLike, "B K P"]) -> Float[ArrayLike, "B K D"]:
        fan_in = self.patch * self.patch * self.channels
        bound = fan_in**-0.5
        kernel_bound = (6 / (fan_in + self.width)) ** 0.5 if self.xavier else bound
        shape = (self.patch, self.patch, self.channels, self.width)
        kernel = self.param("kernel", uniform(kernel_bound), shape)
        if not self.use_bias:
            kernel = kernel.reshape(fan_in, self.width).astype(self.dtype)
            return patches.astype(self.dtype) @ kernel
        bias = self.param("bias", uniform(bound), (self.width,))
        kernel = kernel.reshape(fan_in, self.width).astype(self.dtype)
        return patches.astype(self.dtype) @ kernel + bias.astype(self.dtype)[None, None]


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv; returns its q, k, v as well."""

    heads: int
    kernel_init: Callable[..., Array]
    dtype: DTypeLike = jnp.float32
    relative_grid: tuple[int, int] | None = None
    form: str = "auto"  # of `ops.attention.FORMS`
    variant: variants.Variant = variants.PLAIN
    norm_eps: float = LN_EPS

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "B T D"], rotation: rotary.Rotation | None = None
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T D"], ...]]:
        batch, tokens, width = x.shape
        dense = lambda features, name, use_bias=True: nn.Dense(
            features,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            use_bias=use_bias,
            name=name,
        )
        qkv = dense(3 * width, "qkv", self.variant.attn_bias == "qkv")(x)
        if self.variant.attn_bias == "qv":
            q_bias, v_bias = (
                self.param(name, nn.initializers.zeros, (width,))
                for name in ("q_bias", "v_bias")
            )
            biases = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
            qkv = qkv + biases.astype(qkv.dtype)[None, None]
        qkv = checkpoint_name(qkv, "qkv")
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
        query, key, value = (part.reshape(shape) for part in (q, k, v))
        if rotation is not None:
            convention = self.variant.rotary
            query = rotary.rotate(query, rotation, convention)
            key = rotary.rotate(key, rotation, convention)
        out = attention.attention(query, key, value, bias, self.form).reshape(x.shape)
        if self.variant.attn_norm:
            out = layer_norm("norm", self.norm_eps)(out)
        out = dense(width, "proj")(out)
        return checkpoint_name(out, "proj"), (q, k, v)


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
    def __call__(
        self, x: Float[ArrayLike, "*shape D"], train: bool
    ) -> Float32[Array, "*shape D"]:
        """Normalises over all axes but the last.

        Args:
            x: the batch first.
            train: normalise by the statistics of `x` and collect them, instead of by
                the running ones.
        """
        x = x.astype(jnp.float32)
        width = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        var = self.variable("batch_stats", "var", jnp.ones, width)
        statistics = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            statistics = x.mean(axis=axes), x.var(axis=axes)
            if not self.is_initializing():
                unbiased = statistics[1] * (count / (count - 1))
                mean.value += self.momentum * (statistics[0] - mean.value)
                var.value += self.momentum * (unbiased - var.value)
        shape = (1,) * (x.ndim - 1) + width
        centre, spread = (statistic.reshape(shape) for statistic in statistics)
        x = (x - centre) * jax.lax.rsqrt(spread + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, width)
            bias = self.param("bias", nn.initializers.zeros, width)
            x = x * scale.reshape(shape) + bias.reshape(shape)
        return x


class Mlp(nn.Module):
    """Linear, activation, linear; the activation is the exact GELU but for variants."""

    hidden: int
    width: int
    kernel_init: Callable[..., Array]
    dtype: DTypeLike = jnp.float32
    variant: variants.Variant = variants.PLAIN
    norm_eps: float = LN_EPS

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "*shape D"]
    ) -> Float[Array, "*shape {self.width}"]:
        dense = lambda features, name: nn.Dense(
            features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
        )
        activate = variants.ACTIVATIONS[self.variant.activation]
        if self.variant.gated:
            gate = checkpoint_name(dense(self.hidden, "fc1_g")(x), "fc1")
            value = checkpoint_name(dense(self.hidden, "fc1_x")(x), "fc1")
            x = activate(gate) * value
        else:
            x = activate(checkpoint_name(dense(self.hidden, "fc1")(x), "fc1"))
        if self.variant.mlp_norm:
            x = layer_norm("norm", self.norm_eps)(x)
        return dense(self.width, "fc2")(x)


class Block(nn.Module):
    """Pre-norm transformer block, as the body of a loop over `depth`."""

    heads: int
    mlp_ratio: float
    kernel_init: Callable[..., Array]
    dtype: DTypeLike = jnp.float32
    taps: bool = False
    relations: bool = False
    relative_grid: tuple[int, int] | None = None
    layer_scale: float | None = None
    norm_eps: float = LN_EPS
    attention: str = "auto"
    variant: variants.Variant = variants.PLAIN

    @nn.compact
    def __call__(
        self,
        x: Float[ArrayLike, "B T D"],
        keep: Float[ArrayLike, "2 B"] | None,
        rotation: rotary.Rotation | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, Any]]:
        """Applies the block.

        Args:
            x: the residual stream.
            keep: factors of the attention's and the MLP's branch; None for 1.
            rotation: of queries and keys, by rotary positions.
        Returns:
            The new stream, and (the same if `taps`, q, k and v if `relations`).
        """
        width = x.shape[-1]
        options = dict(variant=self.variant, norm_eps=self.norm_eps)
        attn = Attention(
            self.heads,
            self.kernel_init,
            self.dtype,
            self.relative_grid,
            self.attention,
            **options,
            name="attn",
        )
        hidden = round(width * self.mlp_ratio)
        mlp = Mlp(hidden, width, self.kernel_init, self.dtype, **options, name="mlp")
        branch, qkv = attn(layer_norm("norm1", self.norm_eps)(x), rotation)
        x = x + _dropped(self._scaled(branch, "gamma_1"), keep, 0)
        branch = mlp(layer_norm("norm2", self.norm_eps)(x))
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


def drop_path(
    noise: Float[ArrayLike, "B depth 2"] | None, rate: float
) -> Float[Array, "depth 2 B"] | None:
    """Stochastic depth per sample: survivors are divided by the keep probability.

    Args:
        noise: uniform; None at inference.
        rate: that of the last block; the first has 0, linear between.
    Returns:
        Factors of the residual branches, or None if nothing drops.
    """
    if noise is None or rate == 0.0:
        return None
    depth = noise.shape[1]
    rates = jnp.linspace(0.0, rate, depth)[:, None, None]
    return jnp.where(noise.transpose(1, 2, 0) >= rates, 1 / (1 - rates), 0.0)


def stack(
    x: Float[ArrayLike, "B T D"],
    keep: Float[ArrayLike, "depth 2 B"] | None = None,
    *,
    depth: int,
    heads: int,
    name: str,
    mlp_ratio: float = 4.0,
    kernel_init: Callable[..., Array] = xavier,
    dtype: DTypeLike = jnp.float32,
    scan: bool = True,
    remat: str = "none",
    attention_form: str = "auto",
    taps: bool = False,
    relations: bool = False,
    relative_grid: tuple[int, int] | None = None,
    layer_scale: float | None = None,
    norm_eps: float = LN_EPS,
    variant: variants.Variant = variants.PLAIN,
    rotation: rotary.Rotation | None = None,
) -> Stack:
    """Applies `depth` blocks; called inside a module's `@nn.compact`.

    Args:
        x: the residual stream before the first block.
        keep: of `drop_path`.
        depth: number of blocks.
        heads: of the attention.
        name: of the parameters.
        mlp_ratio: hidden width of the MLPs over the stream's.
        kernel_init: of all kernels.
        dtype: that the blocks compute in.
        scan: compile one block and loop over it, which compiles faster and keeps fewer
            buffers alive; unrolled, the compiler sees them all. The parameters are the
            same.
        remat: one of `REMAT`, how much the backward pass recomputes.
        attention_form: one of `ops.attention.FORMS`.
        taps: return the stream after every block.
        relations: return q, k and v of every block.
        relative_grid: (rows, columns) of the patches that follow a class token; every
            block then has a table of relative positions.
        layer_scale: start of a learned factor per channel of every residual branch.
        norm_eps: added to the variance by the layer norms.
        variant: options of the blocks.
        rotation: of queries and keys in every block, by rotary positions.
    """
    block = Block
    if remat != "none":
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=not scan)
    blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
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
        norm_eps,
        attention_form,
        variant,
        name=name,
    )
    x, (taps, qkv) = blocks(x, keep, rotation)
    return Stack(x, taps, qkv)
