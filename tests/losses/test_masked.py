# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The reconstruction loss against numbers worked out by hand, and identities."""

import jax.numpy as jnp
import numpy as np

import tiny
from g2sd_jax.losses import masked


def test_pixel_loss_ignores_seen_patches(rng):
    pred, target = tiny.normal(rng, 2, 3, 8, 12)
    removed = jnp.zeros((3, 8)).at[:, :6].set(1)
    whole = masked.masked_pixel_loss(pred, target, removed)
    part = np.square(pred[:, :6] - target[:, :6]).mean()
    np.testing.assert_allclose(whole, part, rtol=1e-6)


def test_patches_are_normalised_by_the_unbiased_variance():
    got = masked.normalise_patches(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    expected = np.array([[-1.5, -0.5, 0.5, 1.5]]) / (5 / 3 + 1e-6) ** 0.5
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    flat = masked.normalise_patches(jnp.ones((1, 4)))
    np.testing.assert_array_equal(flat, 0)
