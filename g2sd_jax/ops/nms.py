# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression for many lists of boxes at once."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Integer

from g2sd_jax.ops import boxes as box_ops


def keep(
    boxes: Float32[ArrayLike, "*shape N 4"],
    valid: Bool[ArrayLike, "*shape N"],
    threshold: float,
    groups: Integer[ArrayLike, "*shape N"] | None = None,
) -> Bool[Array, "*shape N"]:
    """Marks the boxes that no better one which is marked overlaps by more.

    Starts from all and repeats: a box stays unless a better one that stays overlaps it
    by more than the threshold. After as many rounds as the longest chain of boxes that
    decide over each other, usually a few, this is what going through them one by one
    would give. All lists share the rounds, which are a reduction over devices each;
    overlaps are computed anew in every round and never stored.

    Args:
        boxes: lists, each sorted by falling score.
        valid: which of the boxes are real.
        threshold: overlap above which the worse box goes.
        groups: only boxes of one group, such as a class, suppress each other.
    """
    valid = jnp.asarray(valid)
    number = jnp.arange(valid.shape[-1])
    earlier = number[None, :] < number[:, None]  # [N, N]: the second before the first.
    earlier = earlier.reshape(*(1,) * (valid.ndim - 1), *earlier.shape)

    def one_round(state):
        # The barrier ties the boxes to the round: else the table of all overlaps,
        # which no round changes, would be computed and stored before the first.
        current, listed = jax.lax.optimization_barrier((state[0], jnp.asarray(boxes)))
        overlaps = box_ops.iou(listed, listed) > threshold
        overlaps &= earlier & current[..., None, :]
        if groups is not None:
            overlaps &= groups[..., :, None] == groups[..., None, :]
        new = valid & ~overlaps.any(axis=-1)
        return new, (new != current).any()

    marked, _ = jax.lax.while_loop(lambda state: state[1], one_round, (valid, True))
    return marked
