# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which patches a mask hides, and where they came from."""

import jax.numpy as jnp
import numpy as np
import pytest

from g2sd_jax.ops import patches


def test_the_patches_of_least_noise_stay():
    noise = jnp.array([[0.9, 0.1, 0.6, 0.3, 0.8, 0.2], [0.0, 0.5, 0.4, 0.3, 0.2, 0.1]])
    masking = patches.mask(noise, 0.5)
    np.testing.assert_array_equal(masking.ids_keep, [[1, 5, 3], [0, 5, 4]])
    np.testing.assert_array_equal(
        masking.removed, [[1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]]
    )
    # Grid position 0 of the first picture, the largest noise, is drawn last.
    np.testing.assert_array_equal(masking.ids_restore[0], [5, 0, 3, 2, 4, 1])


@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.95])
def test_hidden_and_visible_patches_are_all_patches(rng, ratio):
    noise = jnp.asarray(rng.uniform(size=(3, 20)), jnp.float32)
    masking = patches.mask(noise, ratio)
    for ids, removed, row in zip(*masking[::2], noise, strict=True):
        visible = set(np.flatnonzero(removed == 0).tolist())
        assert visible == set(ids.tolist()) and len(visible) == round(20 * (1 - ratio))
        assert row[removed == 0].max() < row[removed == 1].min()
