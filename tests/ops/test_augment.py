# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is drawn, and what a batch looks like once it is prepared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import runs
from g2sd_jax.ops import augment, mixup, resize

PLAIN = augment.Spec((8, 8), mean=(0.5,), std=(0.25,))
FULL = PLAIN._replace(
    classes=5,
    crop_area=(0.2, 1.0),
    flip=0.5,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    return {"image": jnp.asarray(image), "label": jnp.array([0, 4, 2, 2])}


def mixing(lam, cutmix=False, y=0, x=0):
    draws = dict(mix_lam=jnp.float32(lam), mix_cutmix=jnp.array(cutmix))
    return {**draws, "mix_centre_y": jnp.int32(y), "mix_centre_x": jnp.int32(x)}


def floats(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


# Mixing.


def test_smooth_one_hot_by_hand():
    target = mixup.smooth_one_hot(jnp.array([2, 0]), 4, 0.2)
    expected = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]
    np.testing.assert_allclose(target, expected, atol=1e-7)


def test_mixup_blends_with_the_reversed_batch():
    image, target = floats((4, 6, 6, 1)), jnp.eye(4)
    mixed, soft = mixup.mix(image, target, mixing(0.7))
    np.testing.assert_allclose(mixed[0], 0.7 * image[0] + 0.3 * image[3], atol=1e-6)
    np.testing.assert_allclose(soft[1], [0, 0.7, 0.3, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [
        ((5, 6), slice(3, 7), slice(3, 9)),
        ((0, 6), slice(0, 2), slice(3, 9)),  # Clipped at the top.
        ((9, 11), slice(7, 10), slice(8, 12)),
    ],
)
def test_cutmix_box_is_clipped_and_odd_sides_lose_a_pixel(centre, rows, columns):
    # sqrt(1 - 0.75) = 1/2 of 10 x 12: sides 5 and 6, of which 2 + 2 and 3 + 3 remain.
    image, target = floats((2, 10, 12, 3)), jnp.eye(2)
    mixed, soft = mixup.mix(image, target, mixing(0.75, True, *centre))
    expected = np.array(image)
    expected[:, rows, columns] = np.array(image)[::-1, rows, columns]
    np.testing.assert_array_equal(mixed, expected)
    area = (rows.stop - rows.start) * (columns.stop - columns.start) / 120
    np.testing.assert_allclose(soft[0], [1 - area, area], atol=1e-6)


def test_odd_batches_are_refused():
    with pytest.raises(ValueError, match=r"config.batch: a batch of 3"):
        mixup.mix(floats((3, 4, 4, 1)), jnp.eye(3), mixing(0.5))


def many(**changes):
    options = dict(mixup=0.8, cutmix=1.0, switch=0.5, prob=1.0) | changes
    keys = jax.random.split(jax.random.key(0), 4000)
    return jax.vmap(lambda key: mixup.mix_draws(key, (6, 9), **options))(keys)


def test_mix_draws_follow_their_distributions():
    draws = many(switch=0.25)
    assert abs(draws["mix_cutmix"].mean() - 0.25) < 0.03
    for boxed, alpha in ((True, 1.0), (False, 0.8)):
        lam = np.asarray(draws["mix_lam"])[np.asarray(draws["mix_cutmix"]) == boxed]
        # Variance of Beta(a, a): 0.0833 for a = 1, 0.0962 for a = 0.8.
        assert abs(lam.var() - 0.25 / (2 * alpha + 1)) < 0.006
    assert set(np.unique(draws["mix_centre_y"])) == set(range(6))
    assert set(np.unique(draws["mix_centre_x"])) == set(range(9))


def test_mix_draws_with_one_kind_or_seldom():
    assert not many(cutmix=0.0)["mix_cutmix"].any()
    assert many(mixup=0.0, switch=0.0)["mix_cutmix"].all()
    seldom = many(prob=0.1)
    unmixed = np.asarray(seldom["mix_lam"]) == 1
    assert abs(unmixed.mean() - 0.9) < 0.03
    assert not np.asarray(seldom["mix_cutmix"])[unmixed].any()
    with pytest.raises(ValueError, match=r"config.augment.mixup=0"):
        many(mixup=0.0, cutmix=0.0)


# Draws.


def test_draws_are_per_example_or_scalar(batch):
    draws = jax.jit(augment.draw, static_argnums=2)(jax.random.key(0), batch, FULL)
    per_example = {name for name, value in draws.items() if value.shape[:1] == (4,)}
    assert per_example == {"crop", "flip"}
    assert all(draws[name].shape == () for name in set(draws) - per_example)
    assert augment.draw(jax.random.key(0), batch, PLAIN) == {}
    held = augment.draw(jax.random.key(0), {**batch, "crop": 0}, FULL)
    assert "crop" not in held
    # Purposes have their own keys: a crop less moves no flip.
    np.testing.assert_array_equal(held["flip"], draws["flip"])


def test_random_boxes_follow_torchvision():
    key, canvas, area, aspect = jax.random.key(1), (30, 40), (0.2, 1.0), (3 / 4, 4 / 3)
    boxes = np.asarray(augment.random_boxes(key, 3000, canvas, area, aspect))
    y, x, h, w = boxes.T
    np.testing.assert_array_equal(boxes, np.round(boxes))
    assert (y >= 0).all() and (x >= 0).all()
    assert (y + h <= 30).all() and (x + w <= 40).all()
    for start, side, size in ((y, h, 30), (x, w, 40)):  # The ends are reached too.
        low = start[side < size - 5]
        assert low.min() == 0 and (start + side == size)[side < size - 5].any()
    ratio, share = w / h, w * h / 1200
    assert ratio.min() > 0.7 and ratio.max() < 1.4
    # Uniform while everything fits; a square of 900 pixels is the largest that may not.
    assert share.min() > 0.18 and share.max() > 0.95
    small = share[(share > 0.2) & (share < 0.5)]
    assert abs(small.mean() - 0.35) < 0.01
    assert abs(np.log(ratio[share < 0.5]).mean()) < 0.02


@pytest.mark.parametrize(
    ("canvas", "box"),
    [
        ((10, 100), (0, 43, 10, 13)),
        ((100, 10), (43, 0, 13, 10)),
    ],
)
def test_random_boxes_fall_back_to_the_centre(canvas, box):
    # No box of this area and aspect fits into so long a canvas.
    boxes = augment.random_boxes(
        jax.random.key(0), 5, canvas, (0.9, 1.0), (3 / 4, 4 / 3)
    )
    np.testing.assert_array_equal(boxes, [box] * 5)
    # A canvas whose aspect is allowed is taken whole.
    assert augment.largest_box((10, 11), 3 / 4, 4 / 3) == (0, 0, 10, 11)


# Preparing.


def test_plain_prepare_only_normalises(batch):
    out = augment.prepare(batch, {}, PLAIN)
    assert "target" not in out and out["image"].dtype == jnp.float32
    expected = (np.asarray(batch["image"]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(out["image"], expected, atol=1e-6)
    coloured = PLAIN._replace(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    blue = augment.prepare(batch, {}, coloured)["image"][..., 2]
    expected = (np.asarray(batch["image"])[..., 2] / 255 - 0.3) / 4
    np.testing.assert_allclose(blue, expected, atol=1e-6)


def test_flip_turns_columns_of_the_chosen(batch):
    flip = jnp.array([True, False, False, True])
    out = augment.prepare(batch, {"flip": flip}, PLAIN)["image"]
    plain = augment.prepare(batch, {}, PLAIN)["image"]
    np.testing.assert_array_equal(out[0], plain[0, :, ::-1])
    np.testing.assert_array_equal(out[1], plain[1])


def test_crop_comes_from_the_draws_or_from_the_host(batch):
    spec, box = PLAIN._replace(image_size=(4, 4)), jnp.array([[1.0, 3, 4, 4]] * 4)
    drawn = augment.prepare(batch, {"crop": box}, spec)
    held = augment.prepare({**batch, "crop": box}, {"crop": box * 0}, spec)
    expected = augment.prepare(batch, {}, PLAIN)["image"][:, 1:5, 3:7]
    for out in (drawn, held):
        np.testing.assert_allclose(out["image"], expected, atol=2e-6)
        assert "crop" not in out


def test_flips_are_the_same_with_and_without_a_crop(batch):
    flip, whole = jnp.arange(4) % 2 == 0, jnp.array([[0.0, 0, 8, 8]] * 4)
    plain = augment.prepare(batch, {"flip": flip}, PLAIN)["image"]
    cut = augment.prepare(batch, {"flip": flip, "crop": whole}, PLAIN)["image"]
    np.testing.assert_allclose(cut, plain, atol=1e-6)


def test_evaluation_resizes_then_crops(batch):
    # Twice as large, then the middle: as on the picture, not as on the box alone.
    spec, box = PLAIN._replace(image_size=(4, 4)), jnp.array([[2.0, 2, 2, 2]] * 4)
    given = {**batch, "crop": box}
    alone = augment.prepare(given, {}, spec)["image"]
    size = jnp.array([[6, 7]] * 4)
    whole = augment.prepare({**given, "image_size": size}, {}, spec)["image"]
    want = resize.crop_resize(
        batch["image"], box, (4, 4), within=jnp.array([[0, 0, 6, 7]] * 4)
    )
    np.testing.assert_allclose(whole, (want / 255 - 0.5) / 0.25, atol=1e-6)
    assert np.abs(whole - alone).max() > 0.1
    garbage = batch["image"].at[:, 6:].set(255).at[:, :, 7:].set(0)
    got = augment.prepare({**given, "image": garbage, "image_size": size}, {}, spec)[
        "image"
    ]
    np.testing.assert_array_equal(got, whole)


def test_other_canvases_are_resized_around_the_centre(batch):
    spec = PLAIN._replace(image_size=(4, 8))
    out = augment.prepare(batch, {}, spec)["image"]
    expected = augment.prepare(batch, {}, PLAIN)["image"][:, 2:6]
    np.testing.assert_allclose(out, expected, atol=2e-6)
    spec = PLAIN._replace(image_size=(5, 5))
    boxes = jnp.tile(jnp.array([[0.0, 0, 8, 8]]), (4, 1))
    small = resize.crop_resize(batch["image"], boxes, (5, 5))
    expected = (small / 255 - 0.5) / 0.25
    out = augment.prepare(batch, {}, spec)["image"]
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_pixels_stay_in_range_after_bicubic():
    image = jnp.zeros((1, 8, 8, 1), jnp.uint8).at[:, :, 4:].set(255)
    spec = PLAIN._replace(image_size=(16, 16), mean=(0.0,), std=(1.0,))
    out = augment.prepare({"image": image}, {}, spec)["image"]
    assert out.min() == 0 and out.max() == 1


def test_targets_are_smoothed_and_mixed_with_the_image(batch):
    spec = PLAIN._replace(classes=5, smoothing=0.1)
    alone = augment.prepare(batch, {}, spec)
    target = mixup.smooth_one_hot(batch["label"], 5, 0.1)
    np.testing.assert_allclose(alone["target"], target)
    mixed = augment.prepare(batch, mixing(0.6), spec)
    np.testing.assert_allclose(
        mixed["target"], 0.6 * target + 0.4 * target[::-1], atol=1e-6
    )
    expected = 0.6 * alone["image"] + 0.4 * alone["image"][::-1]
    np.testing.assert_allclose(mixed["image"], expected, atol=1e-6)


def test_floats_count_as_prepared_and_targets_as_mixed(batch):
    draws = {**mixing(0.6), "flip": jnp.ones(4, bool), "crop": jnp.ones((4, 4))}
    ready = {**batch, "image": floats((4, 6, 6, 3))}
    mixed = augment.prepare(ready, draws, FULL)
    expected = 0.6 * ready["image"] + 0.4 * ready["image"][::-1]
    np.testing.assert_allclose(mixed["image"], expected, atol=1e-6)
    again = augment.prepare(mixed, draws, FULL)
    for name in ("image", "target"):
        np.testing.assert_array_equal(again[name], mixed[name])


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_have_to_match_the_channels(name):
    config = recipe()
    config.data[name] = (0.5, 0.5)
    with pytest.raises(ValueError, match=f"config.data.{name}="):
        augment.spec(config, train=False)


def test_parts_of_a_batch_have_to_be_even():
    config = recipe()
    config.update(batch=6, accumulate=2)
    with pytest.raises(ValueError, match=r"parts of 3: .* must be even"):
        augment.spec(config, train=True)


def test_whole_path_compiles_once_and_is_finite(batch):
    @jax.jit
    def whole(key, batch):
        return augment.prepare(batch, augment.draw(key, batch, FULL), FULL)

    out = whole(jax.random.key(3), batch)
    assert out["image"].shape == (4, 8, 8, 3) and out["target"].shape == (4, 5)
    assert jnp.isfinite(out["image"]).all()
    np.testing.assert_allclose(out["target"].sum(1), 1, atol=1e-6)


def recipe():
    config = ConfigDict(dict(batch=4, accumulate=1))
    config.model = dict(image_size=(8, 8), channels=3)
    config.data = dict(mean=(0.5,), std=(0.25,), classes=5)
    fields = augment.Spec._fields[4:]
    config.augment = {name: getattr(FULL, name) for name in fields}
    return config


def test_spec_reads_the_recipe():
    config = recipe().lock()
    assert augment.spec(config, train=True) == FULL
    assert augment.spec(config, train=False) == PLAIN


@pytest.mark.parametrize("changes", [{"batch": 5}, {"batch": 12, "accumulate": 4}])
def test_parts_of_an_odd_number_of_pictures_are_not_mixed(changes):
    config = runs.small("finetune", **changes)
    with pytest.raises(ValueError, match="mixing pairs the examples of a part"):
        augment.spec(config, train=True)
    config.augment.update(mixup=0.0, cutmix=0.0)
    assert not augment.spec(config, train=True).mixup
