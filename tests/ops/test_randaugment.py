# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment and random erasing: what is drawn, and what becomes of an image.

The operations themselves are compared with Pillow's in test_golden_classification.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g2sd_jax.ops import augment, erase, randaugment

POLICY = "rand-m9-mstd0.5-inc1"
NAMES = list(randaugment.OPERATIONS)
FILL = jnp.array([124.0, 116, 104])
SPEC = augment.Spec((24, 32), mean=(0.485, 0.456, 0.406), std=(0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(20, 230, size=(15, 24, 32, 3)), jnp.uint8)


def chosen(ops, use=True, magnitude=9.0, sign=1.0):
    """Draws of one layer, the same for each image but for the operation."""
    shape = (len(ops), 1)
    return {
        "ra_op": jnp.asarray(ops, jnp.int32)[:, None],
        "ra_apply": jnp.full(shape, use),
        "ra_magnitude": jnp.full(shape, magnitude, jnp.float32),
        "ra_sign": jnp.full(shape, sign, jnp.float32),
    }


def test_policies_are_parsed_or_refused():
    assert randaugment.parse(POLICY) == (9, 0.5)
    assert randaugment.parse("rand-m7.5-mstd1-inc1") == (7.5, 1)
    with pytest.raises(ValueError, match=r"config.augment.randaugment='rand-m9'.*such"):
        randaugment.parse("rand-m9")


def test_draws_follow_their_distributions():
    draws = randaugment.draw(jax.random.key(0), 6000, mean=9.0, deviation=0.5)
    assert all(values.shape == (6000, 2) for values in draws.values())
    share = np.bincount(draws["ra_op"].ravel(), minlength=15) / 12000
    assert len(share) == 15 and np.abs(share - 1 / 15).max() < 0.012
    assert abs(draws["ra_apply"].mean() - 0.5) < 0.02
    assert abs(draws["ra_sign"].mean()) < 0.04
    assert set(np.unique(draws["ra_sign"])) == {-1, 1}
    magnitude = np.asarray(draws["ra_magnitude"])
    assert magnitude.max() == 10 and abs((magnitude == 10).mean() - 0.0228) < 0.006
    assert abs(np.median(magnitude) - 9) < 0.02
    assert abs((magnitude < 8.5).mean() - 0.1587) < 0.015
    for values in draws.values():  # Layers are independent.
        assert abs(np.corrcoef(np.asarray(values, float).T)[0, 1]) < 0.05


@pytest.mark.parametrize("form", ["all_at_once", "one_by_one"])
def test_every_form_picks_the_operation_drawn(image, form):
    image = image.astype(jnp.float32)
    draws = chosen(range(15), sign=-1.0)
    each = [draws[name] for name in ("ra_op", "ra_apply", "ra_magnitude", "ra_sign")]
    got = jax.jit(getattr(randaugment, form))(image, *each, FILL)
    operate = jax.jit(randaugment.operate, static_argnums=0)
    for i, (name, operation) in enumerate(randaugment.OPERATIONS.items()):
        want = operate(operation, image[i], jnp.float32(9), -1.0, FILL)
        off = np.abs(got[i] - want)  # Compiled together, positions round elsewhere.
        assert off.max() <= (1 if operation.matrix else 0), name
        assert (off > 0).mean() <= 0.01, name
        assert (want != image[i]).any(), name
        np.testing.assert_array_equal(got[i], np.clip(np.round(got[i]), 0, 255))


def test_layers_follow_each_other_and_may_be_left_out(image):
    image = image.astype(jnp.float32)
    first, second = chosen([NAMES.index("Invert")] * 15), chosen(range(15))
    both = jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), first, second)
    got = randaugment.apply(image, both, FILL)
    alone = randaugment.apply(255 - image, second, FILL)
    np.testing.assert_array_equal(got, alone)
    unused = randaugment.apply(image, chosen(range(15), use=False), FILL)
    np.testing.assert_array_equal(unused, image)


def test_the_highest_magnitude_keeps_a_bit(image):
    operation = randaugment.OPERATIONS["PosterizeIncreasing"]
    image = image[0].astype(jnp.float32)
    got = randaugment.operate(operation, image, jnp.float32(10), 1.0, FILL)
    np.testing.assert_array_equal(got, np.where(image < 128, 0, 128))


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_is_as_three_equal_ones(image, name):
    operation = randaugment.OPERATIONS[name]
    grey = image[0, :, :, :1].astype(jnp.float32)
    operate = lambda image, fill: randaugment.operate(
        operation, image, jnp.float32(8), 1.0, fill
    )
    got = operate(grey, FILL[:1])
    assert got.shape == grey.shape
    three = operate(jnp.tile(grey, (1, 1, 3)), jnp.tile(FILL[:1], 3))
    np.testing.assert_array_equal(got, three[..., :1])
    if name == "ColorIncreasing":
        np.testing.assert_array_equal(got, grey)


def test_contrast_is_stretched_as_pillow_rounds_it():
    # In double precision 11 * (255 / 11) - 0 may miss 255, and then the cut shows.
    codes = randaugment.short_levels()
    assert len(codes) == 12094  # Of 2 828 800.
    low, high, level = (int(codes[0]) >> shift & 255 for shift in (16, 8, 0))
    image = jnp.tile(
        jnp.array([low, high, level], jnp.float32)[:, None, None], (1, 3, 1)
    )
    got = randaugment.auto_contrast(image, 0.0)[2, 0, 0]
    scale = 255.0 / (high - low)
    assert got == int(level * scale + -low * scale)
    assert got == (level - low) * 255 // (high - low) - 1


# Erasing.


def test_boxes_to_erase_follow_timm():
    draws = erase.draw(jax.random.key(1), 8000, (40, 60), 0.25)
    y, x, h, w = np.asarray(draws["erase_box"]).T
    used = h > 0
    assert abs(used.mean() - 0.25) < 0.02
    assert not np.asarray(draws["erase_box"])[~used].any()
    y, x, h, w = (side[used] for side in (y, x, h, w))
    assert (h < 40).all() and (w < 60).all()
    assert (y >= 0).all() and (x >= 0).all()
    assert (y + h <= 40).all() and (x + w <= 60).all()
    assert (y + h == 40).any() and (x == 0).any()
    share, ratio = h * w / 2400, h / w
    assert share.min() > 0.017 and 0.3 < share.max() < 0.345
    assert ratio.min() < 0.4 and ratio.max() > 2.5
    assert ratio.min() > 0.25 and ratio.max() < 4
    small = share < 0.15  # Where every aspect fits, its logarithm is uniform.
    assert abs(np.log(ratio[small]).mean()) < 0.1
    assert len(np.unique(draws["erase_seed"], axis=0)) == 8000


def test_noise_fills_the_box_and_nothing_else():
    image = jnp.full((3, 50, 60, 2), 7.0)
    draws = erase.draw(jax.random.key(0), 3, (50, 60), 1.0)
    box = jnp.array([[3, 10, 40, 45], [0, 0, 0, 0], [10, 5, 40, 55]])
    got = np.asarray(erase.apply(image, draws | {"erase_box": box}))
    inside = np.zeros((3, 50, 60), bool)
    inside[0, 3:43, 10:55] = inside[2, 10:, 5:] = True
    assert (got[~inside] == 7).all()
    for i in (0, 2):
        noise = got[i][inside[i]]
        assert abs(noise.mean()) < 0.07 and abs(noise.std() - 1) < 0.05
    first, second = (got[i, 15:40, 12:50].ravel() for i in (0, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


# Both, where a batch is prepared.


def test_off_is_untouched_and_moves_no_other_draw(image):
    full = SPEC._replace(flip=0.5, crop_area=(0.5, 1.0), mixup=0.8, classes=5)
    batch, key = {"image": image}, jax.random.key(4)
    before = augment.draw(key, batch, full)
    assert not any(name.startswith(("ra_", "erase")) for name in before)
    after = augment.draw(key, batch, full._replace(randaugment=POLICY, erase=0.25))
    extra = {"ra_op", "ra_apply", "ra_magnitude", "ra_sign", "erase_box", "erase_seed"}
    assert set(after) == set(before) | extra
    assert all(len(after[name]) == len(image) for name in extra)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_order_is_flip_levels_normalise_erase(image):
    box = jnp.tile(jnp.array([[2, 3, 5, 6]]), (15, 1))
    seed = jax.random.key_data(jax.random.split(jax.random.key(0), 15))
    shift = chosen([NAMES.index("TranslateXRel")] * 15, magnitude=10.0)
    draws = {"flip": jnp.arange(15) % 2 == 0, **shift}
    levels = augment.frame({"image": image}, {"flip": draws["flip"]}, SPEC)
    levels = randaugment.apply(levels, shift, augment.fill(levels, SPEC))
    np.testing.assert_array_equal(augment.fill(levels, SPEC), FILL)
    assert (levels[:, :, -1] == FILL[None, None]).all()
    want = augment.normalise(levels, SPEC.mean, SPEC.std)
    got = augment.prepare({"image": image}, draws, SPEC)["image"]
    np.testing.assert_allclose(got, want, atol=1e-6)
    erased = {"erase_box": box, "erase_seed": seed}
    got = augment.prepare({"image": image}, draws | erased, SPEC)["image"]
    np.testing.assert_allclose(got, erase.apply(want, erased), atol=1e-6)
    assert (np.asarray(got) != want).all(axis=3)[0].sum() == 30


def test_both_compile_with_the_rest_and_stay_finite(image):
    full = SPEC._replace(
        image_size=(8, 8), crop_area=(0.1, 1.0), randaugment=POLICY, erase=0.5
    )

    @jax.jit
    def whole(key):
        batch = {"image": image}
        return augment.prepare(batch, augment.draw(key, batch, full), full)["image"]

    got = whole(jax.random.key(0))
    assert got.shape == (15, 8, 8, 3) and jnp.isfinite(got).all()
    np.testing.assert_array_equal(got, whole(jax.random.key(0)))
