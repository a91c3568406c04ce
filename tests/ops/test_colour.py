# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colour jitter against Pillow's own operations, which torchvision uses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from g2sd_jax.ops import augment, colour

KEY = jax.random.key(0)
AMOUNTS = (0.4, 0.3, 0.5, 0.2)
NAMES = list(colour.OPERATIONS)
ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def pillow(image, name, amount):
    """What torchvision's `adjust_NAME` does to a Pillow image."""
    if name != "hue":
        return ENHANCE[name](image).enhance(amount)
    planes = list(image.convert("HSV").split())
    turned = np.asarray(planes[0]).astype(int) + int(amount * 255)
    planes[0] = Image.fromarray((turned % 256).astype(np.uint8))
    return Image.merge("HSV", planes).convert("RGB")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    smooth = rng.integers(256, size=(8, 4, 5, 3), dtype=np.uint8)
    size = (40, 32)
    images = np.stack([Image.fromarray(each).resize(size, 2) for each in smooth])
    images[0, :4] = rng.integers(256, size=(4, 40, 1))  # Greys have no hue.
    images[0, 0, :3] = [[0, 0, 0], [255, 255, 255], [255, 0, 0]]
    return images


def close(got, want):
    """Pillow's factors are double precision, its hue single: few levels differ."""
    off = np.abs(np.asarray(got) - np.asarray(want, np.float32))
    # One step of an 8-bit hue moves a channel by up to six levels.
    assert off.max() <= 6 and (off > 0).mean() <= 0.01, (off.max(), (off > 0).mean())


@pytest.mark.parametrize(
    ("name", "amount"),
    [(name, amount) for name in NAMES[:3] for amount in (0.0, 0.63, 1.0, 1.37)]
    + [("hue", amount) for amount in (-0.5, -0.21, 0.0, 0.003, 0.1, 0.5)],
)
def test_operations_equal_pillow(images, name, amount):
    operation = jax.jit(colour.OPERATIONS[name])
    for image in images[:3]:
        got = operation(jnp.asarray(image, jnp.float32), jnp.float32(amount))
        close(got, pillow(Image.fromarray(image), name, amount))


def test_each_image_in_its_own_order(images):
    orders = list(itertools.permutations(range(4)))[::3]
    assert len(orders) == len(images)
    draws = dict(jax.jit(colour.draw, static_argnums=(1, 2))(KEY, 8, AMOUNTS))
    amounts = np.stack([draws[f"jitter_{name}"] for name in NAMES], axis=1)
    levels, orders = jnp.asarray(images, jnp.float32), jnp.array(orders)
    got = colour.apply(levels, draws | {"jitter_order": orders})
    # On accelerators all images take every branch at once.
    one = lambda *each: colour.jitter(*each, names=NAMES)
    close(jax.jit(jax.vmap(one))(levels, amounts, orders), got)
    for i, order in enumerate(orders.tolist()):
        want = Image.fromarray(images[i])
        for place in order:
            want = pillow(want, NAMES[place], float(amounts[i, place]))
        off = np.abs(np.asarray(got[i]) - np.asarray(want, np.float32))
        assert off.mean() < 0.1
        wrong = Image.fromarray(images[i])
        for place in order[::-1]:
            wrong = pillow(wrong, NAMES[place], float(amounts[i, place]))
        assert np.abs(np.asarray(got[i]) - np.asarray(wrong)).mean() > 0.1


def test_draws_follow_their_distributions():
    draws = colour.draw(KEY, 6000, (0.4, 1.5, 0.0, 0.2))
    assert set(draws) == {f"jitter_{n}" for n in ("brightness", "contrast", "hue")} | {
        "jitter_order"
    }
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.0, 2.5),
        ("hue", -0.2, 0.2),
    ):
        values = np.asarray(draws[f"jitter_{name}"])
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03
    places, counts = np.unique(draws["jitter_order"], axis=0, return_counts=True)
    assert sorted(map(tuple, places.tolist())) == list(itertools.permutations(range(3)))
    assert np.abs(counts / 6000 - 1 / 6).max() < 0.02


def test_prepare_jitters_levels_before_it_normalises(images):
    spec = augment.Spec((32, 40), mean=(0.5,), std=(0.25,))
    full = spec._replace(color_jitter=AMOUNTS, flip=0.5)
    batch = {"image": jnp.asarray(images)}
    draws = augment.draw(KEY, batch, full)
    assert all(len(each) == len(images) for each in draws.values())
    # A new purpose moves no other; amounts that are all 0 are as none.
    plain = augment.draw(KEY, batch, spec._replace(flip=0.5, color_jitter=(0,) * 4))
    assert set(plain) == {"flip"}
    np.testing.assert_array_equal(draws["flip"], plain["flip"])
    levels = augment.frame(batch, draws, full)
    jittered = colour.apply(levels, draws)
    want = augment.normalise(jittered, full.mean, full.std)
    got = augment.prepare(batch, draws, full)["image"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - augment.prepare(batch, plain, spec)["image"]).mean() > 0.1


def test_amounts_are_checked():
    assert colour.check((), 1) == ()
    assert colour.check([0.4, 0.4, 0.4, 0], 1) == (0.4, 0.4, 0.4, 0)
    for wrong in ((0.4,), (0.4, -0.1, 0, 0), (0, 0, 0, 0.6)):
        with pytest.raises(ValueError, match=r"config.augment.color_jitter=.*such as"):
            colour.check(wrong, 3)
    with pytest.raises(ValueError, match="1 channels have no hue"):
        colour.check((0.4, 0.4, 0.4, 0.1), 1)
