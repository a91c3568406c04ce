# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images as sequences of patch vectors, and the patches a mask leaves visible."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int


class Masking(NamedTuple):
    """The patches that are hidden, for teacher and student alike (MAE, section 3)."""

    ids_keep: Int[Array, "B K"]  # Grid positions of the visible ones, in drawn order.
    ids_restore: Int[Array, "B N"]  # Where each grid position went in the drawn order.
    removed: Float32[Array, "B N"]  # 1 where the patch is hidden, else 0.


def patchify(
    image: Float[ArrayLike, "B H W c"], patch: int
) -> Float[ArrayLike, "B N P"]:
    """Cuts images into patches; within one: row, column, channel (fastest)."""
    batch, height, width, channels = image.shape
    rows, columns = height // patch, width // patch
    image = image.reshape(batch, rows, patch, columns, patch, channels)
    image = image.transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(
    patches: Float[ArrayLike, "B N P"], patch: int, grid: tuple[int, int]
) -> Float[ArrayLike, "B H W c"]:
    """Inverts `patchify` on a grid of (rows, columns)."""
    batch, (rows, columns) = patches.shape[0], grid
    image = patches.reshape(batch, rows, columns, patch, patch, -1)
    image = image.transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(batch, rows * patch, columns * patch, -1)


def visible(patches: int, mask_ratio: float) -> int:
    """Counts the visible patches, truncated in double precision as in the reference."""
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


def mask(noise: Float[ArrayLike, "B N"], mask_ratio: float) -> Masking:
    """Keeps the patches with the smallest noise.

    Args:
        noise: one uniform number per patch.
        mask_ratio: share of patches to remove.
    """
    patches = noise.shape[1]
    keep = visible(patches, mask_ratio)
    ids_shuffle = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(ids_shuffle, axis=1)
    removed = (ids_restore >= keep).astype(jnp.float32)
    return Masking(ids_shuffle[:, :keep], ids_restore, removed)


def gather(
    tokens: Float[ArrayLike, "#B N D"], ids: Int[ArrayLike, "B K"]
) -> Float[ArrayLike, "B K D"]:
    """Picks tokens by their positions; tokens of batch 1 serve the whole batch."""
    tokens = jnp.broadcast_to(tokens, (ids.shape[0], *tokens.shape[1:]))
    return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


def sincos_table(
    width: int, grid: tuple[int, int]
) -> Float32[np.ndarray, "1 {1+grid[0]*grid[1]} {width}"]:
    """Computes the frozen position table of MAE, the row of the class token zero.

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
