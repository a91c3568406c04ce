# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder, and the feature heads a distilled one carries."""

import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from g2sd_jax.models import layers, vit
from g2sd_jax.ops import patches

DECODER_HEADS = {64: 4, 128: 4, 192: 8, 256: 8, 512: 16}
PROJECTIONS = ("fc", "mlp", "mlp2", "none")


class MaeOutput(NamedTuple):
    """What the module was built to compute; the rest is None."""

    pixels: jax.Array | None  # [B, N, P] predicted patch vectors, float32
    decoder: jax.Array | None  # [B, 1 + N, E] raw stream after the last decoder block
    latent: jax.Array | None  # [B, 1 + K, D] encoder output after its norm, float32
    prenorm: jax.Array  # [B, 1 + K, D] the same before the norm
    feature: jax.Array | None  # [B, 1 + N, E_t] head on `decoder`, float32
    encoder_feature: jax.Array | None  # [B, 1 + K, D_t] head on `latent`, float32
    taps: jax.Array | None  # [depth, B, 1 + K, D] after every encoder block
    qkv: tuple | None  # three of [depth, B, 1 + K, D]
    aligned: tuple  # of [B, 1 + K, D_t], one per aligned block, float32


class Decoder(NamedTuple):
    """A decoder's shape, every number known."""

    width: int
    depth: int
    heads: int


def decoder(model, where: str = "config.model") -> Decoder:
    """Reads a model's config: `dec256d4b` is 256 wide, 4 deep; a None comes from it."""
    match = re.fullmatch(r"dec(\d+)d(\d+)b|custom", model.decoder)
    if not match:
        raise ValueError(
            f"{where}.decoder={model.decoder!r} is not known; write dec256d4b for a "
            f"decoder 256 wide and 4 deep, or custom with {where}.dec_*."
        )
    width, depth = (int(number) if number else None for number in match.groups())
    width = model.dec_width or width
    depth = model.dec_depth or depth
    heads = model.dec_heads or DECODER_HEADS.get(width)
    open_keys = [
        f"{where}.dec_{key}"
        for key, value in (("width", width), ("depth", depth), ("heads", heads))
        if not value
    ]
    if open_keys:
        raise ValueError(
            f"{where}.decoder={model.decoder!r} leaves {', '.join(open_keys)} "
            f"open; set them (heads are known for widths {sorted(DECODER_HEADS)})."
        )
    vit.check_heads(f"{where}.dec_*", width, heads)
    return Decoder(width, depth, heads)


class Projections(nn.Module):
    """DMAE's heads, one per aligned block; initialised as PyTorch leaves a linear."""

    width: int
    kind: str  # fc, mlp (linear, GELU, linear), mlp2 (two of those)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: list) -> tuple:
        """Of [B, 1 + K, D] each -> of [B, 1 + K, width] each, float32."""
        heads = {"fc": self._linear, "mlp": self._mlp, "mlp2": self._mlp2}
        head = heads[self.kind]
        return tuple(
            head(feature, f"{index}").astype(jnp.float32)
            for index, feature in enumerate(features)
        )

    def _linear(self, x, name):
        init = layers.uniform(x.shape[-1] ** -0.5)
        return nn.Dense(
            self.width, dtype=self.dtype, kernel_init=init, bias_init=init, name=name
        )(x)

    def _mlp(self, x, name):
        x = nn.gelu(self._linear(x, f"{name}.fc1"), approximate=False)
        return self._linear(x, f"{name}.fc2")

    def _mlp2(self, x, name):
        # The published code names this but cannot run it; two such MLPs is its intent.
        return self._mlp(self._mlp(x, f"{name}.0"), f"{name}.1")


class Mae(nn.Module):
    """Encoder, decoder and heads; each part exists only if it is asked for."""

    width: int
    depth: int
    heads: int
    patch: int
    image_size: tuple[int, int]
    channels: int = 3
    mlp_ratio: float = 4.0
    dec_width: int = 0
    dec_depth: int = 0  # 0: no decoder at all
    dec_heads: int = 1
    pixel_head: bool = True  # decoder_norm and decoder_pred
    norm: bool = True  # the encoder's last norm
    feature_width: int = 0  # width of the teacher's decoder; 0: no such head
    encoder_feature_width: int = 0  # width of the teacher's encoder; 0: no such head
    align_blocks: tuple[int, ...] = ()  # encoder blocks with a DMAE projection
    align_width: int = 0  # the teacher's
    align_projection: str = "fc"  # one of PROJECTIONS
    taps: bool = False
    relations: bool = False
    dtype: jnp.dtype = jnp.float32
    scan: bool = True
    remat: str = "none"

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(side // self.patch for side in self.image_size)

    @nn.compact
    def __call__(self, image: jax.Array, masking: patches.Masking) -> MaeOutput:
        """Sees the visible patches of `image` [B, H, W, C] and guesses the others."""
        stack = self._encode(image, masking)
        latent = feature = encoder_feature = pixels = decoded = None
        if self.norm:
            latent = layers.layer_norm("norm")(stack.last)
        if self.encoder_feature_width:
            head = self._head(self.encoder_feature_width, "encoderfeature_pred")
            encoder_feature = head(latent).astype(jnp.float32)
        if self.dec_depth:
            decoded = self._decode(latent, masking)
        if self.feature_width:
            head = self._head(self.feature_width, "decoderfeature_pred")
            feature = head(decoded).astype(jnp.float32)
        if self.dec_depth and self.pixel_head:
            normed = layers.layer_norm("decoder_norm")(decoded)
            outputs = self.patch**2 * self.channels
            pixels = self._dense(outputs, "decoder_pred")(normed)[:, 1:]
            pixels = pixels.astype(jnp.float32)
        return MaeOutput(
            pixels,
            decoded,
            latent,
            stack.last,
            feature,
            encoder_feature,
            stack.taps,
            stack.qkv,
            self._project([stack.taps[block] for block in self.align_blocks]),
        )

    def _project(self, features):
        if self.align_projection == "none" or not features:
            return tuple(feature.astype(jnp.float32) for feature in features)
        name = "aligned_feature_projection_heads"
        heads = Projections(
            self.align_width, self.align_projection, self.dtype, name=name
        )
        return heads(features)

    def _dense(self, features, name):
        return nn.Dense(
            features, dtype=self.dtype, kernel_init=layers.xavier, name=name
        )

    def _head(self, features, name):
        return layers.Mlp(features, features, layers.xavier, self.dtype, name=name)

    def _stack(self, x, depth, heads, name, **wanted):
        return layers.stack(
            x,
            depth=depth,
            heads=heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            name=name,
            **wanted,
        )

    def _encode(self, image, masking):
        seen = patches.gather(patches.patchify(image, self.patch), masking.ids_keep)
        embed = layers.PatchEmbed(
            self.patch,
            self.channels,
            self.width,
            xavier=True,
            dtype=self.dtype,
            name="patch_embed",
        )
        table = jnp.asarray(patches.sincos_table(self.width, self.grid), self.dtype)
        x = embed(seen) + patches.gather(table[:, 1:], masking.ids_keep)  # [B, K, D]
        cls = self.param("cls_token", layers.normal02, (1, 1, self.width))
        x = vit.prepend(cls, x)  # [B, 1 + K, D]; the class row of the table is zero.
        taps = self.taps or bool(self.align_blocks)
        wanted = dict(taps=taps, relations=self.relations)
        return self._stack(x, self.depth, self.heads, "blocks", **wanted)

    def _decode(self, latent, masking):
        x = self._dense(self.dec_width, "decoder_embed")(latent)  # [B, 1 + K, E]
        token = self.param("mask_token", layers.normal02, (1, 1, self.dec_width))
        hidden = masking.ids_restore.shape[1] - masking.ids_keep.shape[1]
        token = jnp.broadcast_to(
            token.astype(x.dtype), (x.shape[0], hidden, self.dec_width)
        )
        drawn = jnp.concatenate([x[:, 1:], token], axis=1)
        restored = patches.gather(drawn, masking.ids_restore)  # [B, N, E]
        x = jnp.concatenate([x[:, :1], restored], axis=1)
        table = patches.sincos_table(self.dec_width, self.grid)
        x = x + jnp.asarray(table, x.dtype)
        return self._stack(x, self.dec_depth, self.dec_heads, "decoder_blocks").last


def autoencoder(model, where: str = "config.model", **changes) -> Mae:
    """The whole `Mae` of a config; `changes` leave parts out or add heads."""
    vit.grid(model, where)
    shape = decoder(model, where)
    fields = dict(
        **vit.size(model, where)._asdict(),
        image_size=tuple(model.image_size),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        dec_width=shape.width,
        dec_depth=shape.depth,
        dec_heads=shape.heads,
    )
    return Mae(**{**fields, **changes})


def init(model: Mae, key: jax.Array) -> dict:
    """Fresh variables; no example is needed, the module knows its sizes."""
    image = jnp.zeros((1, *model.image_size, model.channels))
    masking = patches.mask(jnp.zeros((1, model.grid[0] * model.grid[1])), 0.5)
    return model.init(key, image, masking)


def encoder(model: Mae) -> Mae:
    """The part that sees: no decoder and no heads."""
    return model.clone(
        dec_depth=0, feature_width=0, encoder_feature_width=0, align_blocks=()
    )


def features(model: Mae, variables: dict, image: jax.Array) -> jax.Array:
    """[B, D] mean of the normed patch tokens, every patch visible; float32."""
    masking = everything(model, len(image))
    return model.apply(variables, image, masking).latent[:, 1:].mean(axis=1)


def everything(model: Mae, count: int) -> patches.Masking:
    """The masking of `count` pictures that hides nothing."""
    ids = jnp.tile(jnp.arange(model.grid[0] * model.grid[1])[None], (count, 1))
    return patches.Masking(ids, ids, jnp.zeros(ids.shape))


def trim(variables: dict, model: Mae) -> dict:
    """What `model`, a part of the autoencoder that owns `variables`, needs of them."""

    def cut(want, have):
        if isinstance(want, dict):
            return {name: cut(want[name], have[name]) for name in want}
        return have[: want.shape[0]] if want.shape != have.shape else have

    wanted = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    return cut(wanted, variables)


def describe(config) -> dict:
    """What a later command needs to know of this architecture and its pictures."""
    model = config.model
    return dict(
        kind="mae",
        model=dict(model.to_dict(), **vit.size(model)._asdict()),
        decoder=decoder(model)._asdict(),
        grid=vit.grid(model),
        mean=config.data.mean,
        std=config.data.std,
    )
