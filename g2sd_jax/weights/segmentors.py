# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A pre-trained encoder, or a published segmentor, under a segmentor's names."""

import re
from collections.abc import Mapping

import numpy as np

from g2sd_jax.ops import resize

ENCODER = re.compile(r"(cls_token|pos_embed)$|(patch_embed|blocks|rel_pos_bias)\.")
SHARED = "backbone.rel_pos_bias.relative_position_bias_table"
TABLE = "attn.relative_position_bias_table"
PATCH = "backbone.patch_embed.proj.weight"


def rename(arrays: Mapping, who: str, patch: int) -> dict[str, np.ndarray]:
    """Arrays as a segmentor of this patch size would call, and shape, them.

    Args:
        arrays: of a masked autoencoder, a classifier (their encoders become the
            backbone), a segmentor, or both segmentors of a published distillation.
        who: student or teacher, the one of those two that is wanted.
        patch: of the segmentor; a 14 x 14 patch embedding is resized to 16 x 16.
    """
    mine = f"{who}."
    if any(name.startswith(f"{mine}backbone.") for name in arrays):
        # What else such a file holds is the other model, and stray feature maps.
        chosen = {n: a for n, a in arrays.items() if n.startswith(mine)}
        arrays = {n.removeprefix(mine): a for n, a in chosen.items()}
    if not any(name.startswith("backbone.") for name in arrays):
        arrays = {
            f"backbone.{n}" if ENCODER.match(n) else n: a for n, a in arrays.items()
        }
    arrays = dict(arrays)
    if SHARED in arrays:  # One table for all blocks; here each has its own.
        table = arrays.pop(SHARED)
        blocks = [re.match(r"backbone\.blocks\.\d+\.", name) for name in arrays]
        arrays |= {f"{found[0]}{TABLE}": table for found in blocks if found}
    if PATCH in arrays and arrays[PATCH].shape[2:] == (14, 14) and patch == 16:
        kernel = resize.resize_bicubic(arrays[PATCH][..., None], (16, 16))
        arrays[PATCH] = np.asarray(kernel)[..., 0]
    return arrays
