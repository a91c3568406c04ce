# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Suppression in rounds against going through the boxes one by one."""

import jax
import numpy as np

from g2sd_jax.ops import boxes as box_ops
from g2sd_jax.ops import nms


def one_by_one(overlaps, valid, threshold, groups):
    marked = []
    for i in np.flatnonzero(valid):
        if all(overlaps[i, j] <= threshold or groups[i] != groups[j] for j in marked):
            marked.append(i)
    return marked


def test_rounds_are_the_greedy_choice(rng):
    # A row of boxes, each suppressed by the one before: the longest chain there is.
    chain = np.stack([np.arange(60) * 2.0, np.zeros(60)], axis=1)
    corner = np.stack([chain, rng.uniform(0, 30, (60, 2)), rng.uniform(0, 9, (60, 2))])
    boxes = np.concatenate([corner, corner + 10], axis=2).astype(np.float32)
    valid = rng.random((3, 60)) < 0.9
    for groups in (np.zeros((3, 60), int), rng.integers(0, 3, (3, 60))):
        kept = np.asarray(
            jax.jit(nms.keep, static_argnums=2)(boxes, valid, 0.3, groups)
        )
        for row in range(3):
            overlaps = np.asarray(box_ops.iou(boxes[row], boxes[row]))
            wanted = one_by_one(overlaps, valid[row], 0.3, groups[row])
            np.testing.assert_array_equal(np.flatnonzero(kept[row]), wanted)
        assert kept.any(axis=1).all() and not kept.all(axis=1).any()
