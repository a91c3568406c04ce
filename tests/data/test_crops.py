# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes: drawn as on the device, the published evaluation rule, scales that fit."""

import jax
import numpy as np
import pytest
from PIL import Image

import files
from g2sd_jax import core
from g2sd_jax.data import crops
from g2sd_jax.data.memory import pictures
from g2sd_jax.ops import augment

ASPECT = (3 / 4, 4 / 3)


@pytest.mark.parametrize(
    ("size", "area", "aspect", "tries"),
    [
        ((60, 90), (0.2, 1.0), ASPECT, 10),
        ((90, 61), (0.08, 1.0), ASPECT, 10),
        ((50, 200), (0.5, 1.0), ASPECT, 3),  # Hardly any fits.
        ((50, 200), (0.5, 1.0), ASPECT, 1),  # One, clamped.
    ],
)
def test_boxes_are_those_of_the_device(size, area, aspect, tries):
    """Given the same uniform numbers; float32 may round a side differently."""
    count, key = 200, jax.random.key(3)
    device = augment.random_boxes(key, count, size, area, aspect, tries)
    keys = core.stream_keys(key, "area", "aspect", "y", "x")
    places = [jax.random.uniform(keys[name], (count, 1)) for name in ("y", "x")]
    pairs = [
        jax.random.uniform(keys[name], (count, tries)) for name in ("area", "aspect")
    ]
    drawn = np.concatenate([*places, np.stack(pairs, -1).reshape(count, -1)], axis=1)
    host = [crops.random_box(size, row, area, aspect, tries) for row in drawn]
    differ = np.abs(np.array(host) - np.array(device)).max(axis=1)
    assert differ.max() <= 1 and (differ > 0).mean() < 0.02


def test_numbers_depend_on_seed_epoch_and_index_alone():
    first = crops.uniforms(3, 5, 7, 22)
    np.testing.assert_array_equal(first, crops.uniforms(3, 5, 7, 22))
    assert first.min() >= 0 and first.max() < 1
    others = [(4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (3, 7, 5)]
    for other in others:
        assert not np.isin(crops.uniforms(*other, 22), first).any()
    for seed, purpose, count in ((3, 1, 7), (4, 2, 3), (3, 1, 22), (3, 1, 22)):
        bits = np.random.Philox(key=[seed, purpose], counter=[0, 0, 9, 2])
        np.testing.assert_array_equal(
            crops.uniforms(seed, 2, 9, count, purpose),
            np.random.Generator(bits).random(count),
        )
    many = np.stack([crops.uniforms(0, 0, index, 4) for index in range(4000)])
    assert abs(many.mean(axis=0) - 0.5).max() < 0.02
    assert abs(np.corrcoef(many.T) - np.eye(4)).max() < 0.06


def test_training_boxes_follow_the_recipe(tmp_path):
    config = files.recipe(tmp_path)
    box = lambda epoch, index: crops.training_box(
        (40, 60), crops.rule(config), epoch, index
    )
    assert len({box(epoch, index) for epoch in (0, 1) for index in (0, 1)}) == 4
    config.augment.crop_area = ()
    whole = box(0, 0)
    assert whole == pytest.approx((0, 50 / 3, 40, 80 / 3))


@pytest.mark.parametrize("size", [(256, 256), (333, 500), (500, 333), (97, 301)])
@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("share", [0.875, 1.0])
def test_evaluation_is_resizing_then_cropping(size, side, share):
    """As torchvision has it, step by step, but for one rounding.

    Pillow chooses by size whether rows or columns come first, and rounds in between.
    """
    image = Image.fromarray(files.pixels(size))
    short, long = int(side / share), int(int(side / share) * max(size) / min(size))
    width, height = (short, long) if size[0] > size[1] else (long, short)
    left, top = round((width - side) / 2), round((height - side) / 2)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((left, top, left + side, top + side))).astype(int)
    box = crops.evaluation_box(size, (side, side), share)
    found = pictures.resize(np.asarray(image), box, (side, side))
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.3


def test_evaluation_of_other_shapes():
    y, x, height, width = crops.evaluation_box((100, 100), (20, 40), 0.5)
    assert (height, width) == (25, 50) and (y, x) == (37.5, 25)
    assert crops.evaluation_share(None, (224, 224)) == 0.875
    assert crops.evaluation_share(None, (224, 240)) == 1.0
    assert crops.evaluation_share(0.9, (448, 448)) == 0.9


@pytest.mark.parametrize(
    ("sides", "part"),
    [
        ((392, 392), 8),
        ((100, 50), 8),  # Enlarged afterwards, whatever the scale.
        ((393, 300), 7),
        ((500, 375), 6),
        ((900, 900), 3),
        ((900, 500), None),  # Three eighths of 500 are fewer than 224.
    ],
)
def test_scales(sides, part):
    assert crops.decode_eighths((0, 0, *sides), (224, 224), (392, 392)) == part
