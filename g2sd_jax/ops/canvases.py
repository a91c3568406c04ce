# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any size at the top left of canvases of one size."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float32, Integer, UInt8

from g2sd_jax.ops import augment, label_maps


def prepare(batch: Mapping[str, ArrayLike], spec: augment.Spec) -> dict[str, ArrayLike]:
    """Normalises the canvases of a batch, as the first line of the loss. Idempotent.

    Args:
        batch: `image` [B, H, W, c] uint8, and `size` [B, 2], height and width of the
            picture on each; one whose image is floating point is returned as it is.
        spec: of `augment.spec`.
    """
    image = batch["image"]
    if jnp.issubdtype(image.dtype, jnp.floating):
        return {**batch, "image": image.astype(jnp.float32)}
    return {**batch, "image": normalise(image, batch["size"], spec.mean, spec.std)}


def normalise(
    image: UInt8[ArrayLike, "B H W c"],
    size: Integer[ArrayLike, "B 2"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[ArrayLike, "B H W c"]:
    """Normalises pictures; what they leave of their canvas is 0 after it.

    Args:
        image: the canvases.
        size: height and width of the picture on each.
        mean: of pixels in 0..1, per channel or one for all.
        std: of the same.
    """
    image = augment.normalise(image.astype(jnp.float32), mean, std)
    shown = label_maps.inside(size, image.shape[1:3])
    return jnp.where(shown[..., None], image, 0.0)
