# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Renames a pre-trained encoder, or a published segmentor, to a segmentor's names."""

import re
from collections.abc import Mapping

import numpy as np

from g2sd_jax.ops import resize

ENCODER = re.compile(r"(cls_token|pos_embed)$|(patch_embed|blocks|rel_pos_bias)\.")
SHARED = "backbone.rel_pos_bias.relative_position_bias_table"
TABLE = "attn.relative_position_bias_table"
PATCH = "backbone.patch_embed.proj.weight"


def rename(
    arrays: Mapping[str, np.ndarray], who: str, patch: int
) -> dict[str, np.ndarray]:
    """Renames arrays to those of a segmentor, and resizes its patch embedding.

    Args:
        arrays: of a masked autoencoder, a classifier (their encoders become the
            backbone), a segmentor, or both segmentors of a published distillation.
        who: student or teacher: which of those two segmentors is wanted.
        patch: of the segmentor; a 14 x 14 patch embedding is resized to 16 x 16.
    """
    prefix = f"{who}."
    if any(name.startswith(f"{prefix}backbone.") for name in arrays):
        # Such a file also holds the other model, and stray feature maps.
        arrays = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
    if not any(name.startswith("backbone.") for name in arrays):
        arrays = {
            f"backbone.{n}" if ENCODER.match(n) else n: a for n, a in arrays.items()
        }
    arrays = dict(arrays)
    if SHARED in arrays:  # One table for all blocks; here each has its own.
        table = arrays.pop(SHARED)
        blocks = [re.match(r"backbone\.blocks\.\d+\.", name) for name in arrays]
        arrays |= {f"{block[0]}{TABLE}": table for block in blocks if block}
    if PATCH in arrays and arrays[PATCH].shape[2:] == (14, 14) and patch == 16:
        kernel = resize.resize_bicubic(arrays[PATCH][..., None], (16, 16))
        arrays[PATCH] = np.asarray(kernel)[..., 0]
    return arrays
