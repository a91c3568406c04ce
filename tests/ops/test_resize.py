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

    weights = np.asarray(resize.cubic_weights(4, 8))
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


BOXES = [
    ((0, 0, 48, 64), (48, 64)),  # y, x, height, width
    ((0, 0, 48, 64), (20, 20)),
    ((5, 9, 30, 41), (16, 24)),
    ((30, 1, 18, 60), (32, 32)),  # Enlarged in one direction, reduced in the other.
    ((47, 63, 1, 1), (8, 8)),
]
FORMS = {  # with the largest and the mean error in grey levels
    "one_by_one": (1, 0.005),
    "all_at_once": (3, 0.4),
}


def crop_resize(form, image, boxes, size, within=None, flip=None):
    """One of the platforms' forms of `resize.crop_resize`, all of which run here."""
    boxes = jnp.asarray(boxes, jnp.float32)
    within = boxes if within is None else jnp.asarray(within, jnp.float32)
    flip = jnp.zeros(len(image), bool) if flip is None else flip
    cut = jax.jit(getattr(resize, form), static_argnames="size")
    return np.asarray(cut(image, boxes, within, flip, size=size))


def agree(form, got, want):
    highest, mean = FORMS[form]
    error = np.abs(got - np.asarray(want, np.float32))
    assert error.max() <= highest and error.mean() <= mean
    np.testing.assert_array_equal(got, np.clip(np.round(got), 0, 255))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("box", "size"), BOXES)
def test_crop_then_resize_equals_pillow(rng, box, size, form):
    image = photo(rng, 48, 64)
    y, x, height, width = box
    cut = Image.fromarray(image).crop((x, y, x + width, y + height))
    want = cut.resize(size[::-1], Image.Resampling.BICUBIC)
    # What lies outside the box is not seen: it may be anything.
    canvas = rng.integers(256, size=image.shape, dtype=np.uint8)
    inside = slice(y, y + height), slice(x, x + width)
    canvas[inside] = image[inside]
    got = crop_resize(form, canvas[None], [box], size)
    agree(form, got[0], want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("box", "size"),
    [*BOXES, ((5.5, 9.25, 10.5, 12), (32, 40)), ((3, 4, 20, 20), (9, 9))],
)
def test_resize_then_crop_equals_pillow(rng, box, size, form):
    image = photo(rng, 48, 64)
    y, x, height, width = box
    want = Image.fromarray(image).resize(
        size[::-1], Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)
    )
    canvas = rng.integers(256, size=(60, 80, 3), dtype=np.uint8)
    canvas[:48, :64] = image
    got = crop_resize(form, canvas[None], [box], size, within=[[0, 0, 48, 64]])
    agree(form, got[0], want)


def test_the_public_name_takes_the_form_of_its_platform(rng):
    image, boxes = photo(rng, 20, 30)[None], jnp.array([[2, 3, 15, 20]])
    want = crop_resize("one_by_one", image, boxes, (8, 8))
    got = jax.jit(resize.crop_resize, static_argnums=2)(image, boxes, (8, 8))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_every_image_has_its_own_box_and_side(rng, form):
    image = rng.integers(256, size=(2, 12, 12, 1), dtype=np.uint8)
    boxes, flip = [[0, 4, 6, 6], [5, 1, 6, 6]], jnp.array([False, True])
    got = crop_resize(form, image, boxes, (6, 6), flip=flip)
    np.testing.assert_array_equal(got[0], image[0, 0:6, 4:10])
    np.testing.assert_array_equal(got[1], image[1, 5:11, 1:7][:, ::-1])
