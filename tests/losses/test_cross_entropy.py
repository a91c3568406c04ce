# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropies against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np

from g2sd_jax.losses import cross_entropy, distill


def test_cross_entropies_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [8.0, 1.0, 1.0]]))
    target = jnp.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    expected = -(0.5 * np.log(1 / 8) + 0.5 * np.log(5 / 8) + np.log(1 / 10)) / 2
    np.testing.assert_allclose(cross_entropy.soft(logits, target), expected, rtol=1e-6)
    hard = cross_entropy.hard(logits, jnp.array([2, 0]))
    np.testing.assert_allclose(hard, -np.log(0.625 * 0.8) / 2, rtol=1e-6)
    assert cross_entropy.accuracy(logits, jnp.array([2, 1])) == 0.5
    teacher = jnp.array([[0.0, 1.0, 2.0], [9.0, 1.0, 2.0]])
    np.testing.assert_allclose(distill.hard_label(logits, teacher), hard, rtol=1e-6)
