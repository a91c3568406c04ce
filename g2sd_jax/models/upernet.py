# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""UperNet on a plain ViT: backbone, decode head, auxiliary head (UperNet, section 3).

Submodules carry the names that segmentation checkpoints have (`psp_modules.0.1.conv`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32, Key
from ml_collections import ConfigDict

from g2sd_jax.models import layers, pyramid, vit
from g2sd_jax.ops import resize


class Features(NamedTuple):
    """The maps of the decode head on its way to its logits, finest first."""

    pooled: tuple[Float[Array, "B k k E"], ...]  # One per pooling scale k.
    laterals: tuple[Float[Array, "B h w E"], ...]  # The last is the pooled top's.
    merged: tuple[Float[Array, "B h w E"], ...]  # The laterals after the way down.
    smoothed: tuple[Float[Array, "B h w E"], ...]  # All but the top, convolved again.
    fused: Float[Array, "B H/4 W/4 E"]  # All levels in one map.
    logits: Float32[Array, "B H/4 W/4 C"]


class Output(NamedTuple):
    """The logits of a segmentor."""

    logits: Float32[Array, "B H/4 W/4 C"]  # Those that are distilled.
    auxiliary: Float32[Array, "B H/16 W/16 C"] | None


class ConvModule(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    features: int
    side: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "B h w D"], train: bool
    ) -> Float[Array, "B h w {self.features}"]:
        std = (2 / (self.features * self.side**2)) ** 0.5  # He, by the outputs.
        conv = nn.Conv(
            self.features,
            (self.side, self.side),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(std),
            name="conv",
        )
        x = nn.relu(layers.BatchNorm(name="bn")(conv(x), train))
        return x.astype(self.dtype)


def classify(
    x: Float[ArrayLike, "B h w E"],
    classes: int,
    rate: float,
    noise: Float[ArrayLike, "B E"] | None,
) -> Float32[Array, "B h w {classes}"]:
    """Drops whole channels, then computes logits (`conv_seg`).

    Args:
        x: feature maps.
        classes: of the logits.
        rate: share of the channels to drop.
        noise: uniform; None drops nothing.
    """
    if noise is not None and rate > 0:
        keep = jnp.where(noise >= rate, 1 / (1 - rate), 0.0)  # [B, E]
        x = x * keep.astype(x.dtype)[:, None, None]
    init = nn.initializers.normal(0.01)
    conv = nn.Conv(classes, (1, 1), dtype=x.dtype, kernel_init=init, name="conv_seg")
    return conv(x).astype(jnp.float32)


class UperHead(nn.Module):
    """Pyramid pooling on the coarsest level, then a feature pyramid to stride 4."""

    classes: int
    width: int
    pool_scales: tuple[int, ...]
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        maps: tuple[Float[ArrayLike, "B _ _ D"], ...],
        train: bool,
        noise: Float[ArrayLike, "B E"] | None = None,
    ) -> Features:
        """Decodes feature maps to logits.

        Args:
            maps: finest first, each half as large as the one before.
            train: whether batch statistics are this batch's.
            noise: uniform, for the channel dropout; None drops nothing.
        """

        def conv(side, name, x):
            return ConvModule(self.width, side, self.dtype, name=name)(x, train)

        *finer, top = [x.astype(self.dtype) for x in maps]
        pooled = tuple(
            conv(1, f"psp_modules.{i}.1", resize.adaptive_pool(top, scale))
            for i, scale in enumerate(self.pool_scales)
        )
        spread = [resize.bilinear(x, top.shape[1:3]) for x in pooled]
        top = conv(3, "bottleneck", jnp.concatenate([top, *spread], axis=-1))
        laterals = [conv(1, f"lateral_convs.{i}", x) for i, x in enumerate(finer)]
        laterals.append(top)
        merged = [top]
        for lateral in laterals[-2::-1]:
            above = resize.bilinear(merged[0], lateral.shape[1:3])
            merged.insert(0, lateral + above)
        smoothed = tuple(
            conv(3, f"fpn_convs.{i}", x) for i, x in enumerate(merged[:-1])
        )
        finest = smoothed[0].shape[1:3]
        levels = [resize.bilinear(x, finest) for x in (*smoothed, top)]
        fused = conv(3, "fpn_bottleneck", jnp.concatenate(levels, axis=-1))
        logits = classify(fused, self.classes, self.dropout, noise)
        laterals, merged = tuple(laterals), tuple(merged)
        return Features(pooled, laterals, merged, smoothed, fused, logits)


class FcnHead(nn.Module):
    """One convolution and a classifier on one level; only training reads it."""

    classes: int
    width: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[ArrayLike, "B h w D"],
        train: bool,
        noise: Float[ArrayLike, "B E"] | None = None,
    ) -> Float32[Array, "B h w {self.classes}"]:
        """Classifies every cell; `noise` is that of the channel dropout."""
        x = ConvModule(self.width, 3, self.dtype, name="convs.0")(x, train)
        return classify(x, self.classes, self.dropout, noise)


class Segmentor(nn.Module):
    """Backbone and heads; without `aux_width` there is no auxiliary head."""

    backbone: pyramid.Backbone
    decode_head: UperHead
    auxiliary_head: FcnHead | None = None

    def __call__(
        self,
        image: Float[ArrayLike, "B H W c"],
        train: bool,
        draws: Mapping[str, ArrayLike] | None = None,
    ) -> Output:
        """Classifies every fourth pixel of every fourth row.

        Args:
            image: normalised, of the backbone's size.
            train: whether batch statistics are this batch's, and collected.
            draws: `drop_path` [B, depth, 2], `dropout` [B, E] and `aux_dropout`
                [B, aux_width], uniform; without one of them nothing is dropped there.
        """
        draws = draws or {}
        maps = self.backbone(image, train, draws.get("drop_path")).maps
        logits = self.decode_head(maps, train, draws.get("dropout")).logits
        auxiliary = None
        if self.auxiliary_head is not None:
            noise = draws.get("aux_dropout")
            auxiliary = self.auxiliary_head(maps[2], train, noise)
        return Output(logits, auxiliary)


def segmentor(
    model: ConfigDict,
    classes: int,
    where: str = "config.model",
    aux: bool = True,
    **compute_options: Any,
) -> Segmentor:
    """Builds the `Segmentor` of a config.

    Args:
        model: the config's group of keys.
        classes: of the data.
        where: the group's name, for errors.
        aux: False leaves out the auxiliary head, which a teacher has no use for.
        **compute_options: of `layers.compute_options`.
    """
    check(model, where)
    size = vit.size(model, where)
    width = model.head_width or size.width
    dtype = compute_options.get("dtype", jnp.float32)
    backbone = pyramid.Backbone(
        **size._asdict(),
        image_size=tuple(model.image_size),
        taps=tuple(model.taps),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        norm_eps=vit.norm_eps(model),
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        **compute_options,
    )
    head = UperHead(classes, width, tuple(model.pool_scales), model.dropout, dtype)
    auxiliary = None
    if aux and model.aux_width:
        auxiliary = FcnHead(classes, model.aux_width, model.dropout, dtype)
    return Segmentor(backbone, head, auxiliary)


def taps_of(depth: int) -> tuple[int, int, int, int]:
    """The blocks, counted from 0, after a third, half, two thirds and all of them."""
    return tuple(max(0, round(depth * part / 6) - 1) for part in (2, 3, 4, 6))


def check(model: ConfigDict, where: str) -> None:
    """Refuses shapes that no pyramid can be made of."""
    size, (rows, columns) = vit.size(model, where), vit.grid(model, where)
    if size.patch not in pyramid.PATCHES:
        raise ValueError(
            f"{where}.patch={size.patch}: a feature pyramid is made of patches of "
            f"{' or '.join(map(str, pyramid.PATCHES))} pixels; use one of them (a "
            "patch embedding of 14 is resized to 16 when it is loaded)."
        )
    coarsest = 32 // size.patch
    if rows < coarsest or columns < coarsest:
        raise ValueError(
            f"{where}.image_size={tuple(model.image_size)} is smaller than the 32 "
            "pixels of the coarsest level's stride; use a larger one."
        )
    taps = tuple(model.taps)
    if len(taps) != 4 or not all(0 <= block < size.depth for block in taps):
        raise ValueError(
            f"{where}.taps={taps}: name four blocks, counted from 0, of the "
            f"{size.depth} there are."
        )


def init(model: Segmentor, key: Key[ArrayLike, ""]) -> dict[str, Any]:
    """Initialises the variables; no example is needed, the module knows its sizes."""
    backbone = model.backbone
    image = jnp.zeros((2, *backbone.image_size, backbone.channels))
    return model.init(key, image, True)


def describe(config: ConfigDict) -> dict[str, Any]:
    """Describes this segmentor and its pictures to later commands."""
    return dict(vit.describe(config), kind="segmentor")
