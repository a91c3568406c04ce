# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plain ViT as segmentation sees it: four levels, tapped from four blocks."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from g2sd_jax.models import layers, vit

PATCHES = (8, 16)  # Those whose tokens are brought to strides 4, 8, 16 and 32.


class Levels(NamedTuple):
    """Feature maps of one picture, and the tokens they come from."""

    maps: tuple  # of [B, H/s, W/s, D], s = 4, 8, 16, 32
    tokens: jax.Array  # [depth, B, 1 + N, D] raw stream after every block


class Deconvolution(nn.Module):
    """A 2 x 2 transposed convolution of stride 2: every pixel becomes four."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, D] -> [B, 2H, 2W, D]
        batch, height, width, channels = x.shape
        init = layers.uniform((4 * channels) ** -0.5)
        # [row, column, out, in], so that PyTorch's is its plain transpose.
        kernel = self.param("kernel", init, (2, 2, channels, channels))
        bias = self.param("bias", init, (channels,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = jnp.einsum("bhwc,ijoc->bhiwjo", x, kernel)
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return x + bias.astype(self.dtype)[None, None, None]


class Backbone(nn.Module):
    """ViT with relative positions and LayerScale, and its feature pyramid.

    There is no final norm: the taps are the raw stream, as published.
    """

    width: int
    depth: int
    heads: int
    patch: int
    image_size: tuple[int, int]
    taps: tuple[int, int, int, int]  # Blocks, counted from 0, finest level first.
    channels: int = 3
    mlp_ratio: float = 4.0
    layer_scale: float = 1.0
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(
        self, image: jax.Array, train: bool, noise: jax.Array | None = None
    ) -> Levels:
        """Sees a picture.

        Args:
            image: [B, H, W, C] float32, normalised.
            train: whether batch statistics are this batch's.
            noise: [B, depth, 2] uniform, for drop path; None drops nothing.
        """
        grid = tuple(side // self.patch for side in self.image_size)
        stack = layers.stack(
            vit.embed(self, image),
            layers.drop_path(noise, self.drop_path),
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            kernel_init=layers.normal02,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            taps=True,
            relative_grid=grid,
            layer_scale=self.layer_scale,
            name="blocks",
        )
        shape = (image.shape[0], *grid, self.width)  # Exported, it has no number.
        maps = [stack.taps[block][:, 1:].reshape(shape) for block in self.taps]
        return Levels(self._pyramid(maps, train), stack.taps)

    def _pyramid(self, maps, train):
        first, second, third, fourth = maps
        up = lambda name: Deconvolution(self.dtype, name=name)
        if self.patch == 8:
            return up("fpn1.0")(first), second, shrink(third, 2), shrink(fourth, 4)
        first = layers.BatchNorm(name="fpn1.1")(up("fpn1.0")(first), train)
        first = up("fpn1.3")(nn.gelu(first, approximate=False))
        return first, up("fpn2.0")(second), third, shrink(fourth, 2)


def shrink(x, by):
    """The largest value of every `by` x `by` square."""
    return nn.max_pool(x, (by, by), (by, by))
