# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from g2sd_jax.ops import similarity


def test_identical_features_are_wholly_alike(rng):
    x = rng.normal(size=(50, 8))
    assert similarity.linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    turned = x @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert similarity.linear_cka(x, 3 * turned + 5) == pytest.approx(1, abs=1e-12)
    stretched = x * np.geomspace(1, 100, 8)  # One direction drowns the others.
    assert similarity.linear_cka(x, stretched) < 0.7


def test_by_hand():
    x = np.array([[1.0], [-1.0], [0.0], [0.0]])
    y = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    # x'x = 2; y'y = diag(2, 8); y'x = (2, 0): 4 / (2 sqrt(4 + 64)).
    assert similarity.linear_cka(x, y) == pytest.approx(2 / np.sqrt(68))
    assert similarity.linear_cka(x, y[:, 1:]) == 0


@pytest.mark.parametrize(("count", "width", "other"), [(100, 20, 60), (2000, 64, 24)])
def test_independent_features_reach_the_noise_level(count, width, other, rng):
    level = similarity.noise_level(count, width, other)
    pairs = [
        similarity.linear_cka(
            rng.normal(size=(count, width)), rng.normal(size=(count, other))
        )
        for _ in range(20)
    ]
    assert np.mean(pairs) == pytest.approx(level, rel=0.05)
    assert level > 0.01


def test_every_layer_meets_every_layer(rng):
    xs, ys = rng.normal(size=(3, 40, 5)), rng.normal(size=(2, 40, 7))
    ys[1, :, :5] = 10 * xs[2]
    found = similarity.layerwise(xs, ys)
    assert found.shape == (3, 2)
    assert found.argmax() == 5
    assert found[2, 1] == pytest.approx(similarity.linear_cka(xs[2], ys[1]))
