# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A vision transformer with two heads: the direction of stripes, the frequency."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from g2sd_jax.models import vit


class StripesOutput(NamedTuple):
    """The answers to a batch."""

    logits: jax.Array  # [B, A] of directions, float32
    frequency: jax.Array  # [B] cycles, float32


class Stripes(nn.Module):
    """An encoder and two linear heads on its class token."""

    backbone: vit.Vit
    directions: int

    @nn.compact
    def __call__(self, image: jax.Array) -> StripesOutput:
        """image [B, H, W, C] float32, normalised."""
        pooled = self.backbone(image).pooled  # [B, D]
        logits = nn.Dense(self.directions, name="direction")(pooled)
        frequency = nn.Dense(1, name="frequency")(pooled)[:, 0]
        return StripesOutput(logits, frequency)


def from_config(model: ConfigDict, directions: int, **options: object) -> Stripes:
    """The module of `config.model`; the options are `layers.compute_options`."""
    vit.grid(model)  # Refuses a picture that is no multiple of the patch.
    backbone = vit.Vit(
        **vit.size(model)._asdict(),
        image_size=tuple(model.image_size),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        **options,
    )
    return Stripes(backbone, directions)


def init(model: Stripes, key: jax.Array) -> dict:
    """Fresh variables; the module knows its sizes."""
    backbone = model.backbone
    return model.init(key, jnp.zeros((1, *backbone.image_size, backbone.channels)))


def describe(config: ConfigDict) -> dict:
    """What a later command needs to know of this network and its pictures."""
    return dict(vit.describe(config), kind="stripes")
