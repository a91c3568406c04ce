# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A state dict's architecture, read off its names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from g2sd_jax.models import mae, vit

BLOCK = re.compile(r"(decoder_)?blocks\.(\d+)\.(norm[12]|attn|mlp)\.")
KNOWN = re.compile(
    r"(decoder_)?blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
    r"|(cls|mask|dist)_token|(decoder_)?pos_embed|patch_embed\.proj\.(weight|bias)"
    r"|(norm|fc_norm|decoder_(embed|norm|pred)|head|head_dist)\.(weight|bias)"
    r"|(encoder|decoder)feature_pred\.fc[12]\.(weight|bias)"
    r"|aligned_feature_projection_heads\.\d+\.(([01]\.)?fc[12]\.)?(weight|bias)"
)


class Architecture(NamedTuple):
    """What the shapes say; heads are in no shape, so they are told or looked up."""

    width: int
    depth: int
    heads: int | None
    patch: int
    channels: int
    grid: tuple[int, int] | None  # None: not square, and nobody says
    mlp_ratio: float
    size: str  # row of models.vit.SIZES, custom
    decoder: mae.Decoder | None
    pixel_head: bool
    classes: int  # 0: no head
    pool: str  # cls, avg
    dist_token: bool
    extra: tuple[str, ...]  # which heads of a distillation it still has
    unknown: tuple[str, ...]  # names that no model here has

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self.grid and tuple(side * self.patch for side in self.grid)


def infer(arrays: Mapping, told: Mapping, source: str) -> Architecture:
    """The architecture of a state dict.

    Args:
        arrays: by PyTorch name.
        told: the file's own description, {} if it has none.
        source: the file, for errors.
    Raises:
        ValueError: it holds no vision transformer.
    """
    needed = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight")
    missing = [name for name in needed if name not in arrays]
    if missing:
        some = ", ".join(sorted(arrays)[:3])
        raise ValueError(
            f"{source} holds no vision transformer that is known here: it has no "
            f"{', '.join(missing)}, but {len(arrays)} entries such as {some}."
        )
    width, channels, patch, _ = arrays["patch_embed.proj.weight"].shape
    depth, decoder_depth = (_depth(arrays, prefix) for prefix in ("", "decoder_"))
    given = told.get("model", {})
    size, heads = _named(width, depth, patch, given.get("heads"))
    decoder = None
    if decoder_depth:
        across = arrays["decoder_blocks.0.norm1.weight"].shape[0]
        known = told.get("decoder", {}).get("heads") or mae.DECODER_HEADS.get(across)
        decoder = mae.Decoder(across, decoder_depth, known)
    parts = ("encoderfeature_pred", "decoderfeature_pred", "aligned_feature_projection")
    return Architecture(
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        channels=channels,
        grid=_grid(arrays, told),
        mlp_ratio=arrays["blocks.0.mlp.fc1.weight"].shape[0] / width,
        size=size,
        decoder=decoder,
        pixel_head="decoder_pred.weight" in arrays,
        classes=len(arrays["head.weight"]) if "head.weight" in arrays else 0,
        pool="avg" if "fc_norm.weight" in arrays else "cls",
        dist_token="dist_token" in arrays,
        extra=tuple(p for p in parts if any(name.startswith(p) for name in arrays)),
        unknown=tuple(sorted(name for name in arrays if not KNOWN.fullmatch(name))),
    )


def _depth(arrays, prefix):
    found = (BLOCK.match(name) for name in arrays)
    numbers = [int(m[2]) for m in found if m and (m[1] or "") == prefix]
    return 1 + max(numbers, default=-1)


def _named(width, depth, patch, told):
    """The named size of an encoder and its heads, where they are known."""
    rows = [
        (name, row[2])
        for name, row in vit.SIZES.items()
        if (row[0], row[1], row[3]) == (width, depth, patch) and told in (None, row[2])
    ]
    if len(rows) == 1:
        return rows[0]
    # Ti has three heads or twelve.
    return (rows[0][0] if rows else "custom"), told


def _grid(arrays, told):
    if told.get("grid"):
        return tuple(told["grid"])
    if "pos_embed" not in arrays:
        return None
    count = arrays["pos_embed"].shape[1] - 1
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def flags(shape: Architecture, where: str = "config.model") -> str:
    """The command-line flags that give a recipe's model this shape."""
    given = {"size": shape.size}
    if shape.size == "custom":
        given |= dict(
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads or "?",
            patch=shape.patch,
        )
    if shape.mlp_ratio != 4:
        given["mlp_ratio"] = shape.mlp_ratio
    if shape.channels != 3:
        given["channels"] = shape.channels
    if shape.image_size and shape.image_size != (224, 224):
        given["image_size"] = ",".join(map(str, shape.image_size))
    if shape.decoder:
        width, depth, heads = shape.decoder
        given["decoder"] = f"dec{width}d{depth}b"
        if heads is None or heads != mae.DECODER_HEADS.get(width):
            given["dec_heads"] = heads or "?"
    if shape.classes or shape.pool == "avg":
        given["pool"] = shape.pool
    if shape.dist_token:
        given["dist_token"] = True
    return " ".join(f"--{where}.{key}={value}" for key, value in given.items())
