# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Interpolation against hand-made numbers, and against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from g2sd_jax.ops import resize


def photo(rng, height, width):
    """[H, W, 3] uint8 with both smooth and hard structure."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(3)]
    image = np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = 250
    return np.clip(image, 0, 255).astype(np.uint8)


def test_table_weights_by_hand():
    # Twice as many points: the first lies a quarter before pixel 0, so that its four
    # taps at distance 1.75, 0.75, 0.25, 1.25 fall on pixels 0, 0, 0, 1.
    def keys(x):
        if x < 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)

    weights = np.asarray(resize.table_weights(4, 8))
    outside = keys(1.75) + keys(0.75) + keys(0.25)
    np.testing.assert_allclose(weights[0], [outside, keys(1.25), 0, 0], atol=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_no_antialias_when_shrinking():
    # An odd factor samples pixel centres exactly: neighbours must not leak in.
    image = jnp.asarray(np.random.default_rng(0).normal(size=(9, 15, 2)), jnp.float32)
    small = resize.resize_bicubic(image, (3, 5))
    np.testing.assert_allclose(small, image[1::3, 1::3], atol=1e-6)


def test_pos_embed_keeps_the_class_row_and_row_order(rng):
    table = jnp.asarray(rng.normal(size=(1, 13, 8)), jnp.float32)
    assert resize.resize_pos_embed(table, (3, 4), (3, 4)) is table
    resized = resize.resize_pos_embed(table, (3, 4), (6, 5))
    assert resized.shape == (1, 31, 8)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])
    expected = resize.resize_bicubic(table[0, 1:].reshape(3, 4, 8), (6, 5))
    np.testing.assert_allclose(resized[0, 1:].reshape(6, 5, 8), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("box", "size"),  # y, x, height, width
    [
        ((0, 0, 48, 64), (48, 64)),
        ((0, 0, 48, 64), (20, 20)),
        ((5, 9, 30, 41), (16, 24)),
        ((5.5, 9.25, 10.5, 12), (32, 40)),
        ((30, 1, 18, 60), (32, 32)),  # Enlarged in one direction, reduced in the other.
        ((47, 63, 1, 1), (8, 8)),
    ],
)
def test_crop_resize_equals_pillow(rng, box, size):
    image = photo(rng, 48, 64)
    y, x, height, width = box
    expected = Image.fromarray(image).resize(
        size[::-1], Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)
    )
    got = jax.jit(resize.crop_resize, static_argnums=2)(
        jnp.asarray(image, jnp.float32)[None], jnp.array([box], jnp.float32), size
    )
    error = np.abs(np.clip(got[0], 0, 255) - np.asarray(expected, np.float32))
    # Pillow rounds twice, once after each direction; no kernel but its own gets here.
    assert error.mean() < 0.5 and error.max() < 2


def test_every_image_has_its_own_box(rng):
    image = jnp.asarray(rng.normal(size=(2, 12, 12, 1)), jnp.float32)
    boxes = jnp.array([[0, 4, 6, 6], [5, 1, 6, 6]], jnp.float32)
    cut = resize.crop_resize(image, boxes, (6, 6))
    np.testing.assert_allclose(cut[0], image[0, 0:6, 4:10], atol=1e-5)
    np.testing.assert_allclose(cut[1], image[1, 5:11, 1:7], atol=1e-5)
