# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Inference of a state dict's architecture from its names and shapes."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from g2sd_jax.models import layers, mae, variants, vit
from g2sd_jax.weights import grids, options, parts, prefixes

# Without these an encoder can not be recognised.
REQUIRED = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
BLOCK = re.compile(r"(decoder_)?blocks\.(\d+)\.(norm[12]|attn|mlp)\.")
NAMES = re.compile(  # Of all tensors that the encoders and decoders here have.
    r"(decoder_)?blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
    r"|blocks\.\d+\.(gamma_[12]|attn\.[qv]_bias)"
    r"|blocks\.\d+\.(attn\.norm|mlp\.(norm|fc1_[gx]))\.(weight|bias)"
    r"|attn_pool\.(latent|(q|kv|proj|norm|mlp\.fc[12])\.(weight|bias))"
    r"|(cls|mask|dist|reg)_token|(decoder_)?pos_embed|patch_embed\.proj\.(weight|bias)"
    r"|(norm|norm_pre|fc_norm|decoder_(embed|norm|pred)|head|head_dist)\.(weight|bias)"
    rf"|({'|'.join(parts.FEATURE_HEADS)})\.fc[12]\.(weight|bias)"
    rf"|{parts.ALIGNMENT_HEADS}\.\d+\.(([01]\.)?fc[12]\.)?(weight|bias)"
)


class Architecture(NamedTuple):
    """An encoder and what stands on it; attention heads are in no shape."""

    width: int
    depth: int
    heads: int | None  # None: the file does not say, and no named size fits
    patch: int
    channels: int
    grid: tuple[int, int] | None  # None: not square, and not told
    mlp_ratio: float
    norm_eps: float  # what LayerNorms add to the variance, as described
    size: str  # row of models.vit.SIZES, custom
    decoder: mae.Decoder | None
    pixel_head: bool
    classes: int  # 0: no head
    pool: str  # of models.vit.POOLS
    variant: variants.Variant  # with what no tensor shows, as described
    dist_token: bool
    extra: tuple[str, ...]  # heads of a distillation
    unknown: tuple[str, ...]  # names that no model here has

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels."""
        return self.grid and tuple(side * self.patch for side in self.grid)


def missing(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The names of `REQUIRED` that a state dict lacks."""
    return [name for name in REQUIRED if name not in arrays]


def refusal(arrays: Mapping[str, np.ndarray], source: str) -> ValueError:
    """The error for a state dict in which nothing is recognised.

    Args:
        arrays: by PyTorch name.
        source: the file.
    """
    some = ", ".join(sorted(arrays)[:3])
    before_encoders = {prefixes.anchored(name) for name in arrays} - {None, ""}
    hint = ""
    if len(before_encoders) == 1:
        [prefix] = before_encoders
        others = [name for name in sorted(arrays) if not name.startswith(prefix)]
        hint = (
            f" Some names begin with {prefix!r}, but {', '.join(others[:3])} do not; "
            "save the former alone, without it."
        )
    return ValueError(
        f"{source} holds no vision transformer that is known here: it has no "
        f"{', '.join(missing(arrays))}, but {len(arrays)} entries such as {some}.{hint}"
    )


def infer(
    arrays: Mapping[str, np.ndarray], describe: Mapping, source: str
) -> Architecture:
    """Infers the architecture of a state dict.

    Args:
        arrays: by PyTorch name.
        describe: the file's own description, {} if it has none.
        source: the file, for errors.
    Raises:
        ValueError: it holds no vision transformer.
    """
    if missing(arrays):
        raise refusal(arrays, source)
    width, channels, patch, columns = arrays["patch_embed.proj.weight"].shape
    if patch != columns:
        raise ValueError(
            f"{source} has patches of {patch}x{columns} pixels; only square ones are "
            "computed here."
        )
    depth, decoder_depth = (_depth(arrays, prefix) for prefix in ("", "decoder_"))
    heads = describe.get("model", {}).get("heads")
    size, heads = _named_size(width, depth, patch, heads)
    decoder = None
    if decoder_depth:
        decoder_width = arrays["decoder_blocks.0.norm1.weight"].shape[0]
        decoder_heads = describe.get("decoder", {}).get("heads")
        decoder_heads = decoder_heads or mae.DECODER_HEADS.get(decoder_width)
        decoder = mae.Decoder(decoder_width, decoder_depth, decoder_heads)
    fc1 = "fc1_g" if "blocks.0.mlp.fc1_g.weight" in arrays else "fc1"
    extra = [
        head
        for head in (*parts.FEATURE_HEADS, parts.ALIGNMENT_HEADS)
        if any(name.startswith(f"{head}.") for name in arrays)
    ]
    return Architecture(
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        channels=channels,
        grid=grids.likely(arrays, describe),
        mlp_ratio=arrays[f"blocks.0.mlp.{fc1}.weight"].shape[0] / width,
        norm_eps=describe.get("model", {}).get("norm_eps", layers.LN_EPS),
        size=size,
        decoder=decoder,
        pixel_head="decoder_pred.weight" in arrays,
        classes=len(arrays["head.weight"]) if "head.weight" in arrays else 0,
        pool=_pool(arrays, describe),
        variant=options.of(arrays, describe, source),
        dist_token="dist_token" in arrays,
        extra=tuple(extra),
        unknown=tuple(sorted(name for name in arrays if not NAMES.fullmatch(name))),
    )


def _pool(arrays: Mapping[str, np.ndarray], describe: Mapping) -> str:
    """What the class head reads, by the parts there are and by the description."""
    if "fc_norm.weight" in arrays:
        return "avg"
    if "attn_pool.latent" in arrays:
        return "attention"
    stated = describe.get("model", {}).get("pool")
    if stated == "norm_avg" or "cls_token" not in arrays:
        return "norm_avg"
    return "cls"


def encoder(shape: Architecture, image_size: tuple[int, int], **fields: Any) -> vit.Vit:
    """Builds the module of an encoder, or of a classifier.

    Args:
        shape: with the number of heads.
        image_size: (height, width) that it is to see.
        **fields: other fields of `vit.Vit`.
    """
    return vit.Vit(
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        patch=shape.patch,
        image_size=image_size,
        channels=shape.channels,
        mlp_ratio=shape.mlp_ratio,
        norm_eps=shape.norm_eps,
        variant=shape.variant,
        **{"pool": shape.pool, "dist_token": shape.dist_token, **fields},
    )


def _depth(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """The number of blocks whose names begin with "" or `decoder_`."""
    blocks = (BLOCK.match(name) for name in arrays)
    numbers = [int(b[2]) for b in blocks if b and (b[1] or "") == prefix]
    return 1 + max(numbers, default=-1)


def _named_size(
    width: int, depth: int, patch: int, heads: int | None
) -> tuple[str, int | None]:
    """The named size of an encoder and its attention heads, where they are known."""
    rows = [
        (name, row[2])
        for name, row in vit.SIZES.items()
        if (row[0], row[1], row[3]) == (width, depth, patch) and heads in (None, row[2])
    ]
    if len(rows) == 1:
        return rows[0]
    # Ti has three heads or twelve.
    return (rows[0][0] if rows else "custom"), heads


def flags(shape: Architecture, where: str = "config.model") -> str:
    """The command-line flags that give a recipe's model this shape."""
    keys = {"size": shape.size}
    if shape.size == "custom":
        keys |= dict(
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads or "?",
            patch=shape.patch,
        )
    if shape.mlp_ratio != 4:
        keys["mlp_ratio"] = shape.mlp_ratio
    if shape.norm_eps != layers.LN_EPS:
        keys["norm_eps"] = shape.norm_eps
    if shape.channels != 3:
        keys["channels"] = shape.channels
    if shape.image_size and shape.image_size != (224, 224):
        keys["image_size"] = ",".join(map(str, shape.image_size))
    if shape.decoder:
        width, depth, heads = shape.decoder
        keys["decoder"] = f"dec{width}d{depth}b"
        if heads is None or heads != mae.DECODER_HEADS.get(width):
            keys["dec_heads"] = heads or "?"
    if shape.classes or shape.pool != "cls":
        keys["pool"] = shape.pool
    if shape.dist_token:
        keys["dist_token"] = True
    for key, value in variants.differences(shape.variant).items():
        value = ",".join(map(str, value)) if isinstance(value, tuple) else value
        keys[f"variant.{key}"] = value
    return " ".join(f"--{where}.{key}={value}" for key, value in keys.items())
