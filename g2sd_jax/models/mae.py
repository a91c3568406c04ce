# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder, and the feature heads a distilled one carries."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32, Key
from ml_collections import ConfigDict

from g2sd_jax.models import layers, vit
from g2sd_jax.ops import patches

HEAD_WIDTH = 32  # Of the published decoders.
DECODER_HEADS = {64: 4, 128: 4, 192: 8, 256: 8, 512: 16}
PROJECTIONS = ("fc", "mlp", "mlp2", "none")


class MaeOutput(NamedTuple):
    """The outputs of an autoencoder; those of parts that it lacks are None."""

    pixels: Float32[Array, "B N P"] | None  # Predicted patches.
    decoder: Float[Array, "B 1+N E"] | None  # Raw stream after the last decoder block.
    latent: Float32[Array, "B 1+K D"] | None  # Encoder output after its norm.
    prenorm: Float[Array, "B 1+K D"]  # Encoder output before its norm.
    feature: Float32[Array, "B 1+N teacher_E"] | None  # Head on `decoder`.
    encoder_feature: Float32[Array, "B 1+K teacher_D"] | None  # Head on `latent`.
    taps: Float[Array, "depth B 1+K D"] | None  # Stream after every encoder block.
    qkv: tuple[Float[Array, "depth B 1+K D"], ...] | None  # Of every encoder block.
    aligned: tuple[Float32[Array, "B 1+K teacher_D"], ...]  # One per aligned block.


class Decoder(NamedTuple):
    """A decoder's shape."""

    width: int
    depth: int
    heads: int


def decoder(model: ConfigDict, where: str = "config.model") -> Decoder:
    """Reads the decoder of a model's config: `dec256d4b` is 256 wide and 4 deep.

    Args:
        model: the config's group of keys; its `dec_*` go before the name's numbers.
            "" is a decoder in proportion to the encoder, see `proportional`.
        where: the group's name, for errors.
    """
    name = model.decoder or proportional(model)
    match = re.fullmatch(r"dec(\d+)d(\d+)b|custom", name)
    if not match:
        raise ValueError(
            f"{where}.decoder={model.decoder!r} is not known; write dec256d4b for a "
            f"decoder 256 wide and 4 deep, or custom with {where}.dec_*."
        )
    width, depth = (int(number) if number else None for number in match.groups())
    width = model.dec_width or width
    depth = model.dec_depth or depth
    heads = model.dec_heads or DECODER_HEADS.get(width)
    if not (heads or model.decoder):
        heads = width // HEAD_WIDTH
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


def proportional(model: ConfigDict) -> str:
    """The decoder that stands to an encoder as the published ones do.

    Two thirds of the width (768 to 512, 384 to 256, 192 to 128), in whole heads of 32;
    of the depth two thirds from 768 on (12 to 8), else a third (12 to 4).
    """
    encoder = vit.size(model)
    width = max(HEAD_WIDTH, round(encoder.width * 2 / 3 / HEAD_WIDTH) * HEAD_WIDTH)
    share = 2 / 3 if encoder.width >= 768 else 1 / 3
    return f"dec{width}d{max(1, round(encoder.depth * share))}b"


class Projections(nn.Module):
    """DMAE's heads, one per aligned block; initialised as PyTorch leaves a linear."""

    width: int
    kind: str  # fc, mlp (linear, GELU, linear), mlp2 (two of those)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Sequence[Float[ArrayLike, "B T D"]]
    ) -> tuple[Float32[Array, "B T {self.width}"], ...]:
        """Projects the features of each block by its head."""
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
    norm_eps: float = layers.LN_EPS
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
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"
    attention: str = "auto"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(side // self.patch for side in self.image_size)

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "B H W c"], masking: patches.Masking
    ) -> MaeOutput:
        """Encodes the visible patches of normalised images and predicts the others."""
        stack = self._encode(image, masking)
        latent = feature = encoder_feature = pixels = decoded = None
        if self.norm:
            latent = layers.layer_norm("norm", self.norm_eps)(stack.last)
        if self.encoder_feature_width:
            head = self._head(self.encoder_feature_width, "encoderfeature_pred")
            encoder_feature = head(latent).astype(jnp.float32)
        if self.dec_depth:
            decoded = self._decode(latent, masking)
        if self.feature_width:
            head = self._head(self.feature_width, "decoderfeature_pred")
            feature = head(decoded).astype(jnp.float32)
        if self.dec_depth and self.pixel_head:
            normed = layers.layer_norm("decoder_norm", self.norm_eps)(decoded)
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

    def _stack(self, x, depth, heads, name, **options):
        return layers.stack(
            x,
            depth=depth,
            heads=heads,
            mlp_ratio=self.mlp_ratio,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            attention_form=self.attention,
            name=name,
            **options,
        )

    def _encode(self, image, masking):
        visible = patches.gather(patches.patchify(image, self.patch), masking.ids_keep)
        embed = layers.PatchEmbed(
            self.patch,
            self.channels,
            self.width,
            xavier=True,
            dtype=self.dtype,
            name="patch_embed",
        )
        table = jnp.asarray(patches.sincos_table(self.width, self.grid), self.dtype)
        x = embed(visible) + patches.gather(table[:, 1:], masking.ids_keep)  # [B, K, D]
        cls = self.param("cls_token", layers.normal02, (1, 1, self.width))
        x = vit.prepend(cls, x)  # [B, 1 + K, D]; the class row of the table is zero.
        taps = self.taps or bool(self.align_blocks)
        options = dict(taps=taps, relations=self.relations)
        return self._stack(x, self.depth, self.heads, "blocks", **options)

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


def autoencoder(model: ConfigDict, where: str = "config.model", **changes: Any) -> Mae:
    """Builds the `Mae` of a config.

    Args:
        model: the config's group of keys.
        where: the group's name, for errors.
        **changes: other fields of `Mae`, which leave parts out or add heads.
    """
    vit.grid(model, where)
    shape = decoder(model, where)
    fields = dict(
        **vit.size(model, where)._asdict(),
        image_size=tuple(model.image_size),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        norm_eps=vit.norm_eps(model),
        dec_width=shape.width,
        dec_depth=shape.depth,
        dec_heads=shape.heads,
    )
    return Mae(**{**fields, **changes})


def init(model: Mae, key: Key[ArrayLike, ""]) -> dict[str, Any]:
    """Initialises the variables; no example is needed, the module knows its sizes."""
    image = jnp.zeros((1, *model.image_size, model.channels))
    masking = patches.mask(jnp.zeros((1, model.grid[0] * model.grid[1])), 0.5)
    return model.init(key, image, masking)


def encoder(model: Mae) -> Mae:
    """Returns the module without its decoder and its heads."""
    return model.clone(
        dec_depth=0, feature_width=0, encoder_feature_width=0, align_blocks=()
    )


def features(
    model: Mae, variables: Mapping[str, Any], image: Float[ArrayLike, "B H W c"]
) -> Float32[Array, "B D"]:
    """Averages the normed patch tokens, every patch visible."""
    masking = no_masking(model, len(image))
    return model.apply(variables, image, masking).latent[:, 1:].mean(axis=1)


def no_masking(model: Mae, count: int) -> patches.Masking:
    """Returns the masking of `count` pictures that hides nothing."""
    ids = jnp.tile(jnp.arange(model.grid[0] * model.grid[1])[None], (count, 1))
    return patches.Masking(ids, ids, jnp.zeros(ids.shape))


def trim(variables: Mapping[str, Any], model: Mae) -> dict[str, Any]:
    """Selects the variables of `model`, a part of the autoencoder they come from.

    A stack of fewer blocks gets the first of them.
    """
    targets = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    return layers.cut(targets, variables)


def describe(config: ConfigDict) -> dict[str, Any]:
    """Describes this architecture and its pictures to later commands."""
    model = config.model
    return dict(
        kind="mae",
        model=dict(model.to_dict(), **vit.size(model)._asdict()),
        decoder=decoder(model)._asdict(),
        grid=vit.grid(model),
        mean=config.data.mean,
        std=config.data.std,
    )
