# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""UperNet on a plain ViT: backbone, decode head, auxiliary head (UperNet, section 3).

Submodules carry the names that segmentation checkpoints have (`psp_modules.0.1.conv`).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from g2sd_jax.models import layers, pyramid, vit
from g2sd_jax.ops import resize


class Features(NamedTuple):
    """What the decode head computes on its way to its logits."""

    pooled: tuple  # of [B, k, k, E], one per pooling scale
    laterals: tuple  # of [B, h, w, E], finest first; the last is the pooled top's
    merged: tuple  # the same after the way down
    smoothed: tuple  # the finer ones of these after one more convolution
    fused: jax.Array  # [B, H/4, W/4, E] all levels in one map
    logits: jax.Array  # [B, H/4, W/4, C] float32


class Output(NamedTuple):
    """What a segmentor says of a picture."""

    logits: jax.Array  # [B, H/4, W/4, C] float32; what is distilled
    auxiliary: jax.Array | None  # [B, H/16, W/16, C] float32


class ConvModule(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    features: int
    side: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
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


def classify(x, classes, rate, noise):
    """[B, h, w, C] float32 logits, whole channels dropped before (`conv_seg`)."""
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
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple, train: bool, noise: jax.Array | None = None
    ) -> Features:
        """Decodes.

        Args:
            maps: of [B, h, w, D], finest first, each half as large as the one before.
            train: whether batch statistics are this batch's.
            noise: [B, width] uniform, for the channel dropout; None drops nothing.
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
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, noise: jax.Array | None = None
    ) -> jax.Array:
        """x [B, h, w, D], noise [B, width] -> [B, h, w, C] logits, float32."""
        x = ConvModule(self.width, 3, self.dtype, name="convs.0")(x, train)
        return classify(x, self.classes, self.dropout, noise)


class Segmentor(nn.Module):
    """Backbone and heads; without `aux_width` there is no auxiliary head."""

    backbone: pyramid.Backbone
    decode_head: UperHead
    auxiliary_head: FcnHead | None = None

    def __call__(
        self, image: jax.Array, train: bool, draws: dict | None = None
    ) -> Output:
        """Classifies every fourth pixel of every fourth row.

        Args:
            image: [B, H, W, C] float32, normalised, of the backbone's size.
            train: whether batch statistics are this batch's, and collected.
            draws: `drop_path` [B, depth, 2], `dropout` [B, E] and `aux_dropout`
                [B, A], uniform; what it lacks drops nothing.
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
    model, classes: int, where: str = "config.model", aux: bool = True, **machine
) -> Segmentor:
    """The `Segmentor` of a config.

    Args:
        model: the config's group of keys.
        classes: of the data.
        where: the group's name, for errors.
        aux: False leaves out the auxiliary head, which a teacher has no use for.
        **machine: dtype, scan, remat.
    """
    check(model, where)
    size = vit.size(model, where)
    width = model.head_width or size.width
    dtype = machine.get("dtype", jnp.float32)
    backbone = pyramid.Backbone(
        **size._asdict(),
        image_size=tuple(model.image_size),
        taps=tuple(model.taps),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        **machine,
    )
    head = UperHead(classes, width, tuple(model.pool_scales), model.dropout, dtype)
    auxiliary = None
    if aux and model.aux_width:
        auxiliary = FcnHead(classes, model.aux_width, model.dropout, dtype)
    return Segmentor(backbone, head, auxiliary)


def check(model, where: str) -> None:
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


def init(model: Segmentor, key: jax.Array) -> dict:
    """Fresh variables; no example is needed, the module knows its sizes."""
    backbone = model.backbone
    image = jnp.zeros((2, *backbone.image_size, backbone.channels))
    return model.init(key, image, True)


def describe(config) -> dict:
    """What a later command needs to know of this segmentor and its pictures."""
    return dict(vit.describe(config), kind="segmentor")
