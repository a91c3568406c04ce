# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The vision transformer with a class token: encoder, classifier, distilled student."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from g2sd_jax import core
from g2sd_jax.models import layers
from g2sd_jax.ops import patches

# Name: width, depth, heads, patch (method: parameter counts of G2SD and MAE).
SIZES = {
    "ti16": (192, 12, 3, 16),
    "ti16_12h": (192, 12, 12, 16),
    "s16": (384, 12, 6, 16),
    "b16": (768, 12, 12, 16),
    "l16": (1024, 24, 16, 16),
    "h14": (1280, 32, 16, 14),
    "custom": (None, None, None, None),
}


class VitOutput(NamedTuple):
    """What a classifier says, and what it saw."""

    logits: jax.Array | None  # [B, C] of the class head, float32
    dist_logits: jax.Array | None  # [B, C] of the distillation head, float32
    pooled: jax.Array  # [B, D] what the class head reads
    dist_feature: jax.Array | None  # [B, D] what the distillation head reads
    tokens: jax.Array  # [B, T, D] raw residual stream after the last block
    taps: jax.Array | None  # [depth, B, T, D] the same after every block


class Size(NamedTuple):
    """An encoder's shape, every number known."""

    width: int
    depth: int
    heads: int
    patch: int


def check_heads(where: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(
            f"{where}: width {width} is not a multiple of {heads} heads; "
            "change one of the two."
        )


def size(model, where: str = "config.model") -> Size:
    """Reads a model's config: the named row of `SIZES`, each None filled from it."""
    row = Size(*core.lookup(f"{where}.size", model.size, SIZES))
    given = {key: model[key] for key in Size._fields if model[key] is not None}
    row = row._replace(**given)
    missing = [f"{where}.{key}" for key in Size._fields if not getattr(row, key)]
    if missing:
        raise ValueError(
            f"{where}.size={model.size!r} leaves {', '.join(missing)} open; "
            "set them, or choose a named size."
        )
    check_heads(where, row.width, row.heads)
    return row


def grid(model, where: str = "config.model") -> tuple[int, int]:
    """Rows and columns of patches of a model's config."""
    patch = size(model, where).patch
    if len(model.image_size) != 2:
        raise ValueError(
            f"{where}.image_size={tuple(model.image_size)}: give (height, width)."
        )
    height, width = model.image_size
    if height % patch or width % patch or not height or not width:
        near = [max(patch, round(side / patch) * patch) for side in (height, width)]
        raise ValueError(
            f"{where}.image_size={(height, width)} is not a multiple of the patch "
            f"({patch}); use {tuple(near)} or change {where}.patch."
        )
    return height // patch, width // patch


class Vit(nn.Module):
    """A ViT classifier; with `classes=0` an encoder."""

    width: int
    depth: int
    heads: int
    patch: int
    image_size: tuple[int, int]
    channels: int = 3
    mlp_ratio: float = 4.0
    classes: int = 0
    pool: str = "cls"  # cls: the normed class token; avg: fc_norm of the patches' mean
    dist_token: bool = False
    drop_path: float = 0.0
    head_std: float = 0.02
    taps: bool = False
    dtype: jnp.dtype = jnp.float32
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, image: jax.Array, noise: jax.Array | None = None) -> VitOutput:
        """Classifies.

        Args:
            image: [B, H, W, C] float32, normalised.
            noise: [B, depth, 2] uniform, for drop path; None at inference.
        """
        x = embed(self, image)
        if self.dist_token:
            # Last, and after the positions: G2SD gives it none, unlike DeiT.
            token = (1, 1, self.width)
            last = self.param("dist_token", layers.normal02, token).astype(self.dtype)
            last = jnp.broadcast_to(last, (x.shape[0], 1, self.width))
            x = jnp.concatenate([x, last], axis=1)  # [B, 2 + N, D]
        stack = layers.stack(
            x,
            layers.drop_path(noise, self.drop_path),
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            kernel_init=layers.normal02,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            taps=self.taps,
            name="blocks",
        )
        pooled, dist_feature = self._pool(stack.last)
        logits = dist_logits = None
        if self.classes:
            logits = self._head("head", self.head_std)(pooled)
            if self.dist_token:
                # Its initialisation is not shrunk with the head's (G2SD, stage 2).
                dist_logits = self._head("head_dist", 0.02)(dist_feature)
        return VitOutput(
            logits, dist_logits, pooled, dist_feature, stack.last, stack.taps
        )

    def _pool(self, x):
        if self.pool == "cls":
            x = layers.layer_norm("norm")(x)
            return x[:, 0], x[:, -1] if self.dist_token else None
        # The published code cannot pool with a distillation token. Here the mean is
        # over patches only, and the one fc_norm serves both readouts.
        norm = layers.layer_norm("fc_norm")
        if not self.dist_token:
            return norm(x[:, 1:].mean(axis=1, dtype=jnp.float32)), None
        return norm(x[:, 1:-1].mean(axis=1, dtype=jnp.float32)), norm(x[:, -1])

    def _head(self, name, std):
        # In float32: [B, D] is small, and the loss wants its logits so.
        init = nn.initializers.normal(std)
        return nn.Dense(self.classes, kernel_init=init, name=name)


def embed(module: nn.Module, image: jax.Array) -> jax.Array:
    """[B, 1 + N, D] class token and patches of an image, trained positions added.

    Args:
        module: whose parameters they are; called inside its `@nn.compact`.
        image: [B, H, W, C] float32, normalised.
    """
    rows, columns = (side // module.patch for side in module.image_size)
    patch_embed = layers.PatchEmbed(
        module.patch,
        module.channels,
        module.width,
        xavier=False,
        dtype=module.dtype,
        name="patch_embed",
    )
    x = patch_embed(patches.patchify(image, module.patch))  # [B, N, D]
    normal, count = layers.normal02, 1 + rows * columns
    cls = module.param("cls_token", normal, (1, 1, module.width))
    table = module.param("pos_embed", normal, (1, count, module.width))
    return prepend(cls, x) + table.astype(module.dtype)  # [B, 1 + N, D]


def prepend(token: jax.Array, x: jax.Array) -> jax.Array:
    """token [1, 1, D] before x [B, T, D]."""
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([token, x], axis=1)


def classifier(model, classes: int, where: str = "config.model", **machine) -> Vit:
    """The `Vit` of a classifier's config; `machine`: dtype, scan, remat."""
    grid(model, where)
    core.one_of(f"{where}.pool", model.pool, ("cls", "avg"))
    core.one_of(f"{where}.readout", model.readout, ("cls", "dist", "mean"))
    if model.readout != "cls" and not model.dist_token:
        raise ValueError(
            f"{where}.readout={model.readout!r} needs a distillation head; set "
            f"{where}.dist_token=True or {where}.readout=cls."
        )
    return Vit(
        **size(model, where)._asdict(),
        image_size=tuple(model.image_size),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        classes=classes,
        pool=model.pool,
        dist_token=model.dist_token,
        drop_path=model.drop_path,
        head_std=model.head_std,
        **machine,
    )


def init(model: Vit, key: jax.Array) -> dict:
    """Fresh variables; no example is needed, the module knows its sizes."""
    return model.init(key, jnp.zeros((1, *model.image_size, model.channels)))


def read(output: VitOutput, readout: str) -> jax.Array:
    """[B, C] logits by `config.model.readout`: cls, dist, or the mean of both heads."""
    if readout == "mean":
        return (output.logits + output.dist_logits) / 2
    return output.dist_logits if readout == "dist" else output.logits


def describe(config) -> dict:
    """What a later command needs to know of this classifier and its pictures."""
    model = config.model
    return dict(
        kind="vit",
        model=dict(model.to_dict(), **size(model)._asdict()),
        grid=grid(model),
        classes=config.data.classes,
        mean=config.data.mean,
        std=config.data.std,
    )
