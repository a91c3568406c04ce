# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images as sequences of patch vectors, and the patches a mask leaves visible."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Masking(NamedTuple):
    """Which patches are seen; one object for teacher and student (MAE, section 3)."""

    ids_keep: jax.Array  # [B, K] grid positions of the visible patches, in drawn order
    ids_restore: jax.Array  # [B, N] where each grid position went in the drawn order
    removed: jax.Array  # [B, N] float32, 1 where the patch is hidden


def patchify(image: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, N, P]; within a patch: row, column, channel (fastest)."""
    batch, height, width, channels = image.shape
    rows, columns = height // patch, width // patch
    image = image.reshape(batch, rows, patch, columns, patch, channels)
    image = image.transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: jax.Array, patch: int, grid: tuple[int, int]) -> jax.Array:
    """[B, N, P] -> [B, H, W, C]: `patchify` undone on a grid (rows, columns)."""
    batch, (rows, columns) = patches.shape[0], grid
    image = patches.reshape(batch, rows, columns, patch, patch, -1)
    image = image.transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(batch, rows * patch, columns * patch, -1)


def visible(patches: int, mask_ratio: float) -> int:
    """How many patches stay: truncated in double precision, as the reference does."""
    return int(patches * (1 - mask_ratio))


def check_mask_ratio(mask_ratio: float, patches: int) -> None:
    """Refuses a ratio that leaves no patch to see, or none to predict."""
    keep = visible(patches, mask_ratio) if 0 <= mask_ratio <= 1 else 0
    if not 0 < keep < patches:
        low, high = 1 / patches, 1 - 1 / patches
        raise ValueError(
            f"config.mask_ratio={mask_ratio} leaves {keep} of {patches} patches "
            f"visible; choose a ratio between {low:.3g} and {high:.3g}."
        )


def mask(noise: jax.Array, mask_ratio: float) -> Masking:
    """Keeps the patches with the smallest noise.

    Args:
        noise: [B, N] float32, one uniform number per patch.
        mask_ratio: share of patches to remove.
    """
    patches = noise.shape[1]
    keep = visible(patches, mask_ratio)
    ids_shuffle = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(ids_shuffle, axis=1)
    removed = (ids_restore >= keep).astype(jnp.float32)
    return Masking(ids_shuffle[:, :keep], ids_restore, removed)


def gather(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """tokens [B, N, D] (or [1, N, D]), ids [B, K] -> [B, K, D]."""
    tokens = jnp.broadcast_to(tokens, (ids.shape[0], *tokens.shape[1:]))
    return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


def sincos_table(width: int, grid: tuple[int, int]) -> np.ndarray:
    """The frozen position table of MAE: [1, 1 + N, D] float32, class row zero.

    The first half of the channels encodes the column, the second the row; within a half
    all sines come before all cosines (method: MAE's code, computed in float64).
    """
    if width % 4:
        raise ValueError(
            f"a sin-cos position table needs a width divisible by 4, got {width}; "
            "change config.model.width or config.model.dec_width."
        )
    rows, columns = np.mgrid[: grid[0], : grid[1]].astype(np.float64)
    frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    halves = []
    for index in (columns, rows):
        angle = index.reshape(-1, 1) * frequency  # [N, D/4]
        halves += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(halves, axis=1)
    table = np.concatenate([np.zeros((1, width)), table])
    return table.astype(np.float32)[None]
