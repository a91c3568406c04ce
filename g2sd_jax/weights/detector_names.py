# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Renames a pre-trained encoder to the names of a detector's backbone."""

import dataclasses
import re

from g2sd_jax.weights import loading, parts

PREFIX = "backbone.net."
ENCODER = re.compile(r"(pos_embed$|(patch_embed|blocks)\.)")


def rename_weights(weights: loading.Weights) -> loading.Weights:
    """The weights of a detector as they are; those of an encoder as its backbone's.

    A class token keeps its name, for a detector has none.
    """
    if any(name.startswith(PREFIX) for name in weights.arrays):
        return weights
    arrays = {
        f"{PREFIX}{name}" if ENCODER.match(name) else name: array
        for name, array in weights.arrays.items()
    }
    return dataclasses.replace(weights, arrays=arrays)


def has_heads(weights: loading.Weights) -> bool:
    """Whether a file holds a detector and not an encoder alone."""
    return weights.classes(parts.MASK_HEAD) is not None


def has_adapter(weights: loading.Weights) -> bool:
    """Whether a file holds the adapter of a distilled student."""
    return any(name.startswith("stu_adapter.") for name in weights.arrays)
