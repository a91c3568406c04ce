# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The vision transformer: encoder, classifier, distilled student, anybody's teacher."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32, Key
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.models import layers, pooling, variants
from g2sd_jax.ops import patches, rotary

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
FILE = "file"  # In place of a size: the architecture of the weight file.
OF_FILE = f"{FILE} or "  # Before a size: it serves where there is no file.
POOLS = {  # What the class head reads; an encoder may have "none", and no last norm.
    "cls": "the class token",
    "avg": "the mean of the patches",
    "norm_avg": "the mean of the normed patches",
    "attention": "an attention head",
}


class VitOutput(NamedTuple):
    """The outputs of a classifier; those of parts that it lacks are None."""

    logits: Float32[Array, "B C"] | None  # Of the class head.
    dist_logits: Float32[Array, "B C"] | None  # Of the distillation head.
    pooled: Float32[Array, "B D"] | None  # Input of the class head.
    dist_feature: Float32[Array, "B D"] | None  # Input of the distillation head.
    tokens: Float[Array, "B T D"]  # Raw residual stream after the last block.
    taps: Float[Array, "depth B T D"] | None  # After every block.
    # After the last norm; None with pool=avg or none, which have no such norm.
    normed: Float32[Array, "B T D"] | None = None
    qkv: tuple[Float[Array, "depth B T D"], ...] | None = None  # Of every block.


class Size(NamedTuple):
    """An encoder's shape."""

    width: int
    depth: int
    heads: int
    patch: int


def check_heads(where: str, width: int, heads: int) -> None:
    """Refuses a width that the heads can not share evenly."""
    if width % heads:
        raise ValueError(
            f"{where}: width {width} is not a multiple of {heads} heads; "
            "change one of the two."
        )


def size(model: ConfigDict, where: str = "config.model") -> Size:
    """Reads the encoder's shape: a row of `SIZES`, unless the config sets a number.

    Args:
        model: the config's group of keys.
        where: the group's name, for errors.
    """
    # "file or b16" is b16 until the architecture was read from a file.
    name = model.size.removeprefix(OF_FILE)
    row = Size(*errors.lookup(f"{where}.size", name, SIZES))
    numbers = {key: model[key] for key in Size._fields if model[key] is not None}
    row = row._replace(**numbers)
    missing = [f"{where}.{key}" for key in Size._fields if not getattr(row, key)]
    if missing:
        raise ValueError(
            f"{where}.size={model.size!r} leaves {', '.join(missing)} open; "
            "set them, or choose a named size."
        )
    check_heads(where, row.width, row.heads)
    return row


def norm_eps(model: ConfigDict) -> float:
    """Reads what layer norms add to the variance; runs from before the key lack it."""
    return model.get("norm_eps", layers.LN_EPS)


def grid(model: ConfigDict, where: str = "config.model") -> tuple[int, int]:
    """Computes rows and columns of patches of a model's config."""
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
    norm_eps: float = layers.LN_EPS
    classes: int = 0
    # cls: the normed class token; avg: fc_norm of the patches' mean; norm_avg: mean of
    # the normed patches; attention: a head over all normed tokens; none: no last norm
    pool: str = "cls"
    dist_token: bool = False
    drop_path: float = 0.0
    head_std: float = 0.02
    taps: bool = False
    relations: bool = False
    variant: variants.Variant = variants.PLAIN
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
        self,
        image: Float[ArrayLike, "B H W c"],
        noise: Float[ArrayLike, "B depth 2"] | None = None,
        masking: patches.Masking | None = None,
    ) -> VitOutput:
        """Encodes and classifies a batch of images.

        Args:
            image: normalised.
            noise: uniform, for drop path; None at inference.
            masking: the patches to see, in its order; None for all.
        """
        prefix = self.variant.prefix
        x = embed(self, image, self.variant)
        if masking is not None:
            visible = patches.gather(x[:, prefix:], masking.ids_keep)
            x = jnp.concatenate([x[:, :prefix], visible], axis=1)  # [B, T, D]
        rotation = self._rotation(masking)
        if self.variant.pre_norm:
            x = layers.layer_norm("norm_pre", self.norm_eps)(x).astype(self.dtype)
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
            norm_eps=self.norm_eps,
            kernel_init=layers.normal02,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
            attention_form=self.attention,
            taps=self.taps,
            relations=self.relations,
            layer_scale=self.variant.layer_scale or None,
            variant=self.variant,
            rotation=rotation,
            name="blocks",
        )
        pooled, dist_feature, normed = self._pool(stack.last)
        logits = dist_logits = None
        if self.classes:
            logits = self._head("head", self.head_std)(pooled)
            if self.dist_token:
                # Its initialisation is not shrunk with the head's (G2SD, stage 2).
                dist_logits = self._head("head_dist", 0.02)(dist_feature)
        return VitOutput(
            logits,
            dist_logits,
            pooled,
            dist_feature,
            stack.last,
            stack.taps,
            normed,
            stack.qkv,
        )

    def _rotation(self, masking):
        """The rotation of every token by its place, None without rotary positions."""
        variant = self.variant
        if variant.rotary == "none":
            return None
        by = rotary.angles(
            self.grid,
            self.width // self.heads,
            convention=variant.rotary,
            theta=variant.rotary_theta,
            reference=variant.rotary_grid,
        )[None]
        if masking is not None:
            by = patches.gather(by, masking.ids_keep)
        return rotary.turn(by, variant.prefix)

    def _pool(self, x):
        """What class head and distillation head read, and all tokens normed."""
        prefix = self.variant.prefix
        if self.pool == "none":
            return None, None, None
        if self.pool != "avg":
            x = layers.layer_norm("norm", self.norm_eps)(x)
        if self.pool == "cls":
            return x[:, 0], x[:, -1] if self.dist_token else None, x
        if self.pool == "norm_avg":
            return x[:, prefix:].mean(axis=1), None, x
        if self.pool == "attention":
            hidden = round(self.width * self.mlp_ratio)
            pool = pooling.AttentionPool(
                self.heads,
                hidden,
                self.norm_eps,
                self.variant,
                self.dtype,
                name="attn_pool",
            )
            return pool(x), None, x
        # The published code cannot pool with a distillation token. Here the mean is
        # over patches only, and the one fc_norm serves both readouts.
        norm = layers.layer_norm("fc_norm", self.norm_eps)
        if not self.dist_token:
            return norm(x[:, prefix:].mean(axis=1, dtype=jnp.float32)), None, None
        mean = x[:, prefix:-1].mean(axis=1, dtype=jnp.float32)
        return norm(mean), norm(x[:, -1]), None

    def _head(self, name, std):
        # In float32: [B, D] is small, and the loss needs float32 logits.
        init = nn.initializers.normal(std)
        return nn.Dense(self.classes, kernel_init=init, name=name)


def embed(
    module: nn.Module,
    image: Float[ArrayLike, "B H W c"],
    variant: variants.Variant = variants.PLAIN,
) -> Float[Array, "B T D"]:
    """Embeds class token, registers and patches, trained positions added.

    Args:
        module: owns the parameters; called inside its `@nn.compact`.
        image: normalised.
        variant: which of them there are.
    """
    rows, columns = (side // module.patch for side in module.image_size)
    patch_embed = layers.PatchEmbed(
        module.patch,
        module.channels,
        module.width,
        xavier=False,
        dtype=module.dtype,
        use_bias=variant.patch_bias,
        name="patch_embed",
    )
    x = patch_embed(patches.patchify(image, module.patch))  # [B, N, D]
    normal, count = layers.normal02, variant.class_token + rows * columns
    if variant.class_token:
        cls = module.param("cls_token", normal, (1, 1, module.width))
        x = prepend(cls, x)
    if variant.positions == "learned":
        table = module.param("pos_embed", normal, (1, count, module.width))
        x = x + table.astype(module.dtype)  # [B, 1 + N, D]
    if variant.registers:
        shape = (1, variant.registers, module.width)
        registers = module.param("reg_token", normal, shape).astype(x.dtype)
        registers = jnp.broadcast_to(registers, (len(x), *shape[1:]))
        first, rest = x[:, : variant.class_token], x[:, variant.class_token :]
        x = jnp.concatenate([first, registers, rest], axis=1)
    return x


def prepend(
    token: Float[ArrayLike, "1 1 D"], x: Float[ArrayLike, "B T D"]
) -> Float[Array, "B T+1 D"]:
    """Puts one token before the others of every example."""
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([token, x], axis=1)


def classifier(
    model: ConfigDict,
    classes: int,
    where: str = "config.model",
    **compute_options: Any,
) -> Vit:
    """Builds the `Vit` of a classifier's config.

    Args:
        model: the config's group of keys.
        classes: of the data.
        where: the group's name, for errors.
        **compute_options: of `layers.compute_options`.
    """
    grid(model, where)
    shape = size(model, where)
    errors.one_of(f"{where}.pool", model.pool, POOLS)
    errors.one_of(f"{where}.readout", model.readout, ("cls", "dist", "mean"))
    variant = variants.read(model, where)
    _check_variant(variant, model, shape, where)
    if model.readout != "cls" and not model.dist_token:
        raise ValueError(
            f"{where}.readout={model.readout!r} needs a distillation head; set "
            f"{where}.dist_token=True or {where}.readout=cls."
        )
    return Vit(
        **shape._asdict(),
        image_size=tuple(model.image_size),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        norm_eps=norm_eps(model),
        classes=classes,
        pool=model.pool,
        dist_token=model.dist_token,
        drop_path=model.drop_path,
        head_std=model.head_std,
        variant=variant,
        **compute_options,
    )


def encoder(model: ConfigDict, where: str = "config.model", **fields: Any) -> Vit:
    """Builds the `Vit` of an encoder's config, which has no head.

    Args:
        model: the config's group of keys.
        where: the group's name, for errors.
        **fields: other fields of `Vit`.
    """
    grid(model, where)
    variant, shape = variants.read(model, where), size(model, where)
    _check_rotary(variant, shape, where)
    fields = {
        **shape._asdict(),
        "image_size": tuple(model.image_size),
        "channels": model.channels,
        "mlp_ratio": model.mlp_ratio,
        "norm_eps": norm_eps(model),
        "pool": "cls" if variant.class_token else "norm_avg",
        "variant": variant,
        **fields,
    }
    return Vit(**fields)


def _check_variant(
    variant: variants.Variant, model: ConfigDict, shape: Size, where: str
) -> None:
    """Refuses options that contradict each other, or the rest of a model."""
    if model.pool == "cls" and not variant.class_token:
        raise ValueError(
            f"{where}.pool=cls reads a class token, which {where}.variant.class_token="
            f"False leaves out; set {where}.pool to avg, norm_avg or attention."
        )
    if model.dist_token and model.pool not in ("cls", "avg"):
        raise ValueError(
            f"{where}.dist_token=True is pooled by cls or avg only; set "
            f"{where}.pool to one of the two."
        )
    _check_rotary(variant, shape, where)


def _check_rotary(variant: variants.Variant, shape: Size, where: str) -> None:
    """Refuses heads whose channels make no whole pairs for rows and columns."""
    if variant.rotary != "none" and (shape.width // shape.heads) % 4:
        raise ValueError(
            f"{where}.variant.rotary={variant.rotary} turns heads whose width is a "
            f"multiple of 4, but {shape.width} channels make {shape.heads} heads of "
            f"{shape.width // shape.heads}; change {where}.heads."
        )


def init(model: Vit, key: Key[ArrayLike, ""]) -> dict[str, Any]:
    """Initialises the variables; no example is needed, the module knows its sizes."""
    return model.init(key, jnp.zeros((1, *model.image_size, model.channels)))


def trim(variables: Mapping[str, Any], model: Vit) -> dict[str, Any]:
    """Selects the variables of `model`, a part of the network they come from."""
    targets = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    return layers.cut(targets, variables)


def read_logits(output: VitOutput, readout: str) -> Float[Array, "B C"]:
    """Selects the logits of `config.model.readout`: cls, dist, or the mean of both."""
    if readout == "mean":
        return (output.logits + output.dist_logits) / 2
    return output.dist_logits if readout == "dist" else output.logits


def describe(config: ConfigDict) -> dict[str, Any]:
    """Describes this classifier and its pictures to later commands."""
    model = config.model
    options = {**model.to_dict(), **size(model)._asdict()}
    if "variant" in model:
        options["variant"] = variants.read(model)._asdict()
    return dict(
        kind="vit",
        model=options,
        grid=grid(model),
        classes=config.data.classes,
        mean=config.data.mean,
        std=config.data.std,
    )
