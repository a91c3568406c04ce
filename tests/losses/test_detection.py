# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation by groups, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax.losses import detection


def test_groups_are_divided_alone_and_averaged():
    total, count = jnp.array([1.0, 3.0, 5.0, 7.0]), jnp.array([1.0, 3.0, 0.0, 0.0])
    assert detection.group_mean(total, count, 1) == (1 + 1 + 0 + 0) / 4
    assert detection.group_mean(total, count, 2) == (4 / 4 + 0) / 2
    assert detection.group_mean(total, count, 4) == 16 / 4
    # Nothing is divided by 0, not in the gradient either.
    grad = jax.grad(lambda x: detection.group_mean(x, count, 2))(total)
    np.testing.assert_array_equal(grad, [1 / 8, 1 / 8, 0, 0])


def test_boxes_that_do_not_count_may_be_empty():
    empty = jnp.zeros((1, 2, 4))
    unit = jnp.array([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    counted = jnp.array([[True, False]])

    def total(deltas):
        return detection.box_errors(deltas, unit, unit, counted, (1, 1, 1, 1)).sum()

    value, grad = jax.value_and_grad(total)(empty + 0.5)
    assert value == 2.0
    np.testing.assert_array_equal(grad, [[[1.0] * 4, [0.0] * 4]])
