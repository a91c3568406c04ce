# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of a patch grid, as DINOv3 and as EVA-02 have them.

A query or key of d channels is d / 2 pairs, each turned by an angle that grows with
the patch's row (first half of the pairs) or column (second half). The two conventions
differ in the unit of a position and in which channels make a pair.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

CONVENTIONS = ("dinov3", "eva02")


class Rotation(NamedTuple):
    """Cosines and sines of every token's angles; a batch of 1 serves all."""

    cos: Float32[Array, "#B T d"]
    sin: Float32[Array, "#B T d"]


def angles(
    grid: tuple[int, int],
    width: int,
    *,
    convention: str,
    theta: float,
    reference: tuple[int, int] = (16, 16),
) -> Float32[np.ndarray, "N d"]:
    """Computes the angle of every patch and channel of a head.

    Args:
        grid: (rows, columns) of patches.
        width: d, channels of a head; a multiple of 4.
        convention: dinov3, whose positions are the patches' centres from -1 to 1, times
            2 pi (arXiv 2508.10104); or eva02, whose positions count patches, scaled as
            if the grid were `reference` (arXiv 2303.11331).
        theta: the last frequency is nearly 1 / theta of the first.
        reference: (rows, columns) of the grid that eva02 was trained on.
    """
    quarter = width // 4
    frequency = theta ** -(np.arange(quarter) / quarter)
    places = []
    for side, trained in zip(grid, reference, strict=True):
        if convention == "dinov3":
            places.append(2 * np.pi * (2 * (np.arange(side) + 0.5) / side - 1))
        else:
            places.append(np.arange(side) * trained / side)
    rows, columns = np.meshgrid(*places, indexing="ij")
    by_axis = [place.reshape(-1, 1) * frequency for place in (rows, columns)]
    pairs = np.concatenate(by_axis, axis=1)  # [N, d / 2]
    if convention == "dinov3":
        return np.tile(pairs, 2).astype(np.float32)
    return np.repeat(pairs, 2, axis=1).astype(np.float32)


def turn(by: Float[ArrayLike, "#B N d"], prefix: int) -> Rotation:
    """Converts angles; the `prefix` tokens before the patches are not turned."""
    padded = jnp.pad(by, ((0, 0), (prefix, 0), (0, 0)))
    return Rotation(jnp.cos(padded), jnp.sin(padded))


def rotate(
    x: Float[ArrayLike, "B T h d"], rotation: Rotation, convention: str
) -> Float[Array, "B T h d"]:
    """Turns queries or keys; of `convention` depends which channels make a pair.

    Channels i and i + d / 2 do for dinov3, 2 i and 2 i + 1 for eva02.
    """
    cos, sin = (part[:, :, None] for part in rotation)
    y = x.astype(jnp.float32)
    if convention == "dinov3":
        first, second = jnp.split(y, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
    else:
        turned = jnp.stack([-y[..., 1::2], y[..., ::2]], axis=-1).reshape(y.shape)
    return (y * cos + turned * sin).astype(x.dtype)
