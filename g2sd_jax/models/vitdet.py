# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plain ViT as a detector's backbone: windows, few global blocks, five levels.

After ViTDet (Li et al., 2022). Submodules carry detectron2's names (`net.blocks`,
`simfp_2.4.norm`).
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from g2sd_jax.models import layers, pyramid
from g2sd_jax.ops import attention, patches, resize, windows

LEVELS = (2, 3, 4, 5, 6)  # Level k has stride 2^k.
STRIDES = tuple(2**level for level in LEVELS)


class Features(NamedTuple):
    """Feature maps of a batch of pictures."""

    maps: tuple[Float[Array, "B _ _ E"], ...]  # Of `LEVELS`, finest first.
    tokens: Float[Array, "B h w D"]  # Of the last block, without a norm.


class WindowAttention(nn.Module):
    """Self-attention with relative positions, over windows of a grid or all of it."""

    heads: int
    window: int  # 0: over all of the grid
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B h w D"]) -> Float[Array, "B h w D"]:
        grid, width = x.shape[1:3], x.shape[-1]
        if self.window:
            # Padded tokens are zeros after the norm, and ordinary keys and values.
            x = windows.partition(x, self.window)
        dense = lambda features, name: nn.Dense(
            features, dtype=self.dtype, kernel_init=layers.normal02, name=name
        )
        shape = (*x.shape[:3], 3, self.heads, width // self.heads)
        qkv = checkpoint_name(dense(3 * width, "qkv")(x), "qkv")
        q, k, v = jnp.moveaxis(qkv.reshape(shape), 3, 0)
        tables = [
            self.param(name, nn.initializers.zeros, (2 * side - 1, shape[-1]))
            for name, side in zip(("rel_pos_h", "rel_pos_w"), shape[1:3], strict=True)
        ]
        x = checkpoint_name(windows.attention(q, k, v, *tables), attention.KEPT)
        x = dense(width, "proj")(x.reshape(*x.shape[:3], width))
        x = checkpoint_name(x, "proj")
        return windows.merge(x, grid) if self.window else x


class Block(nn.Module):
    """Pre-norm transformer block on a grid of tokens."""

    heads: int
    window: int
    mlp_ratio: float
    norm_eps: float = layers.LN_EPS
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "B h w D"], keep: Float[ArrayLike, "2 B"] | None
    ) -> Float[Array, "B h w D"]:
        """Applies the block; `keep` are the factors of its two branches, None for 1."""
        width = x.shape[-1]
        attn = WindowAttention(self.heads, self.window, self.dtype, name="attn")
        hidden = round(width * self.mlp_ratio)
        mlp = layers.Mlp(hidden, width, layers.normal02, self.dtype, name="mlp")
        x = x + _dropped(attn(layers.layer_norm("norm1", self.norm_eps)(x)), keep, 0)
        return x + _dropped(mlp(layers.layer_norm("norm2", self.norm_eps)(x)), keep, 1)


def _dropped(branch, keep, which):
    if keep is None:
        return branch
    return branch * keep[which].astype(branch.dtype)[:, None, None, None]


def pattern(kinds: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest beginning whose repetition is all of `kinds`."""
    length = next(
        length
        for length in range(1, len(kinds) + 1)
        if len(kinds) % length == 0 and kinds == kinds[:length] * (len(kinds) // length)
    )
    return kinds[:length]


class Period(nn.Module):
    """The blocks of one period of a stack, as the body of a loop over the periods.

    Its parts are called `0of3`, `1of3`, `2of3`: blocks of one part have parameters of
    the same shapes, and are stacked on a leading axis.
    """

    windows: tuple[int, ...]  # Of each block; 0: global
    heads: int
    mlp_ratio: float
    norm_eps: float
    dtype: DTypeLike
    scan: bool
    remat: str
    taps: bool

    @nn.compact
    def __call__(
        self,
        x: Float[ArrayLike, "B h w D"],
        keep: Float[ArrayLike, "period 2 B"] | None,
    ) -> tuple[Float[Array, "B h w D"], Float[Array, "period B h w D"] | None]:
        """Applies the blocks; returns the stream, and after each block if `taps`."""
        block, outputs = Block, []
        if self.remat != "none":
            block = nn.remat(
                block,
                policy=layers.REMAT[self.remat],
                prevent_cse=not self.scan,
            )
        for i, window in enumerate(self.windows):
            x = block(
                self.heads,
                window,
                self.mlp_ratio,
                self.norm_eps,
                self.dtype,
                name=f"{i}of{len(self.windows)}",
            )(x, None if keep is None else keep[i])
            outputs.append(x)
        return x, jnp.stack(outputs) if self.taps else None


class Net(nn.Module):
    """The vision transformer without class token and final norm."""

    width: int
    depth: int
    heads: int
    patch: int
    image_size: tuple[int, int]
    pretrain_grid: tuple[int, int]  # (rows, columns) of the table of positions
    window: int
    global_blocks: tuple[int, ...]
    channels: int = 3
    mlp_ratio: float = 4.0
    norm_eps: float = layers.LN_EPS
    drop_path: float = 0.0
    taps: bool = False
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        image: Float[ArrayLike, "B H W c"],
        noise: Float[ArrayLike, "B depth 2"] | None = None,
    ) -> tuple[Float[Array, "B h w D"], Float[Array, "depth B h w D"] | None]:
        """Encodes normalised pictures.

        Args:
            image: normalised, padded with zeros.
            noise: uniform, for drop path; None drops nothing.
        Returns:
            The stream after the last block, and after every block if `taps`.
        """
        x = self.embed(image)
        kinds = tuple(
            0 if i in self.global_blocks else self.window for i in range(self.depth)
        )
        period = pattern(kinds)
        repeats = self.depth // len(period)
        blocks = nn.scan(
            Period,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=repeats,
            unroll=1 if self.scan else repeats,
        )(
            period,
            self.heads,
            self.mlp_ratio,
            self.norm_eps,
            self.dtype,
            self.scan,
            self.remat,
            self.taps,
            name="blocks",
        )
        keep = layers.drop_path(noise, self.drop_path)
        if keep is not None:
            keep = keep.reshape(repeats, len(period), *keep.shape[1:])
        x, taps = blocks(x, keep)
        if self.taps:
            taps = taps.reshape(self.depth, *taps.shape[2:])
        return x, taps

    def embed(self, image: Float[ArrayLike, "B H W c"]) -> Float[Array, "B h w D"]:
        """Embeds patches, trained positions added; called inside `__call__`."""
        grid = tuple(side // self.patch for side in self.image_size)
        patch_embed = layers.PatchEmbed(
            self.patch,
            self.channels,
            self.width,
            xavier=False,
            dtype=self.dtype,
            name="patch_embed",
        )
        x = patch_embed(patches.patchify(image, self.patch))
        rows, columns = self.pretrain_grid
        # With a row for the class token of pre-training, which nothing reads.
        shape = (1, 1 + rows * columns, self.width)
        table = self.param("pos_embed", layers.normal02, shape)
        positions = resize.resize_pos_embed(table, self.pretrain_grid, grid)[:, 1:]
        x = x + positions.astype(self.dtype)
        return x.reshape(x.shape[0], *grid, self.width)


class ConvNorm(nn.Module):
    """A convolution without bias, then a layer norm over the channels."""

    features: int
    side: int
    kernel_init: Callable[..., Array] | None = None  # None: PyTorch's
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "*shape h w D"]
    ) -> Float[Array, "*shape h w {self.features}"]:
        shape = (self.side, self.side, x.shape[-1], self.features)
        init = self.kernel_init
        init = init or layers.uniform((self.side**2 * x.shape[-1]) ** -0.5)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return layers.layer_norm("norm")(x).astype(self.dtype)


class Backbone(nn.Module):
    """The ViT and its simple feature pyramid: every level from the last map alone."""

    net: Net
    features: int = 256

    @nn.compact
    def __call__(
        self,
        image: Float[ArrayLike, "B H W c"],
        noise: Float[ArrayLike, "B depth 2"] | None = None,
    ) -> Features:
        """Computes the five levels of a batch of normalised pictures."""
        dtype, width = self.net.dtype, self.net.width
        tokens, _ = self.net(image, noise)
        up = lambda name, features, x: pyramid.Deconvolution(
            dtype, features, name=f"simfp_{name}"
        )(x)
        conv = lambda name, side, x: ConvNorm(
            self.features, side, dtype=dtype, name=f"simfp_{name}"
        )(x)
        x = up("2.0", width // 2, tokens)
        x = nn.gelu(layers.layer_norm("simfp_2.1")(x), approximate=False)
        x = up("2.3", width // 4, x)
        second = conv("2.5", 3, conv("2.4", 1, x))
        third = conv("3.2", 3, conv("3.1", 1, up("3.0", width // 2, tokens)))
        fourth = conv("4.1", 3, conv("4.0", 1, tokens))
        fifth = conv("5.2", 3, conv("5.1", 1, pyramid.shrink(tokens, 2)))
        sixth = fifth[:, ::2, ::2]
        return Features((second, third, fourth, fifth, sixth), tokens)
