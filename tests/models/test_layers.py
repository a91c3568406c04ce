# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth, and what a platform computes by default."""

import jax
import numpy as np
import pytest

import runs
from g2sd_jax.models import layers


def test_drop_path_statistics():
    noise = jax.random.uniform(jax.random.key(0), (4000, 3, 2))
    kept = np.asarray(layers.drop_path(noise, 0.4))  # [depth, 2, B]
    assert kept.shape == (3, 2, 4000)
    for block, rate in enumerate((0.0, 0.2, 0.4)):
        survivors = kept[block] > 0
        np.testing.assert_allclose(kept[block][survivors], 1 / (1 - rate), rtol=1e-6)
        assert abs(survivors.mean() - (1 - rate)) < 0.03
    both = (kept[2] > 0).all(axis=0).mean()  # Two draws per block, independent.
    assert abs(both - 0.36) < 0.03
    assert layers.drop_path(None, 0.4) is None and layers.drop_path(noise, 0.0) is None


@pytest.mark.parametrize(
    ("platform", "remat"), [("cpu", "none"), ("gpu", "none"), ("tpu", "products")]
)
def test_what_is_recomputed_depends_on_the_platform(platform, remat):
    config = runs.small("pretrain", remat="auto")
    assert layers.on_platform(config, platform).remat == remat
    config.remat = "dots"
    assert layers.on_platform(config, platform).remat == "dots"
