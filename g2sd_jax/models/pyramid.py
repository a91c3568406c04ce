# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plain ViT with a feature pyramid: four levels, tapped from four blocks."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from g2sd_jax.models import layers, vit

PATCHES = (8, 16)  # Sides of patches that can be brought to strides 4, 8, 16 and 32.


class Levels(NamedTuple):
    """Feature maps of one picture, and the tokens they come from."""

    maps: tuple[Float[Array, "B h w D"], ...]  # h = H / s for s = 4, 8, 16, 32.
    tokens: Float[Array, "depth B T D"]  # Raw stream after every block.


class Deconvolution(nn.Module):
    """A 2 x 2 transposed convolution of stride 2: every pixel becomes four."""

    dtype: DTypeLike = jnp.float32
    features: int | None = None  # None: as many as there are
    kernel_init: Callable[..., Array] | None = (
        None  # None: PyTorch's; else the bias is 0
    )

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B h w D"]) -> Float[Array, "B 2*h 2*w _"]:
        batch, height, width, channels = x.shape
        features = self.features or channels
        # PyTorch counts the outputs of a transposed convolution as its fan-in.
        init = layers.uniform((4 * features) ** -0.5)
        bias_init = nn.initializers.zeros if self.kernel_init else init
        # [row, column, out, in], so that PyTorch's is its plain transpose.
        shape = (2, 2, features, channels)
        kernel = self.param("kernel", self.kernel_init or init, shape)
        bias = self.param("bias", bias_init, (features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = jnp.einsum("bhwc,ijoc->bhiwjo", x, kernel)
        x = x.reshape(batch, 2 * height, 2 * width, features)
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
    norm_eps: float = layers.LN_EPS
    layer_scale: float = 1.0
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        image: Float[ArrayLike, "B H W c"],
        train: bool,
        noise: Float[ArrayLike, "B depth 2"] | None = None,
    ) -> Levels:
        """Computes the pyramid of a batch of images.

        Args:
            image: normalised.
            train: whether batch statistics are this batch's.
            noise: uniform, for drop path; None drops nothing.
        """
        grid = tuple(side // self.patch for side in self.image_size)
        stack = layers.stack(
            vit.embed(self, image),
            layers.drop_path(noise, self.drop_path),
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_eps=self.norm_eps,
            kernel_init=layers.normal02,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            attention_form=self.attention,
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


def shrink(
    x: Float[ArrayLike, "B h w D"], by: int
) -> Float[Array, "B {x.shape[1]//by} {x.shape[2]//by} D"]:
    """Takes the largest value of every `by` x `by` square."""
    return nn.max_pool(x, (by, by), (by, by))
