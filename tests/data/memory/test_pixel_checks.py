# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that are nearly black, or far from the recipe's mean, are warned of."""

import numpy as np
import pytest

import coco_files
import files
import label_map_files
from g2sd_jax.data import source
from g2sd_jax.data.memory import pixel_checks


def lines(tmp_path, image, **data):
    path = tmp_path / "train" / "a"
    path.mkdir(parents=True)
    (path / "0.png").write_bytes(files.encode(image, "PNG"))
    config = files.recipe(tmp_path, classes=0, train_examples=1, **data)
    return pixel_checks.warnings(config, source.load(config, "train"))


def test_twelve_bits_in_sixteen(tmp_path, rng):
    image = rng.integers(0, 4096, (40, 48)).astype(np.uint16)
    [line] = lines(tmp_path, image)
    assert "nearly black" in line and "12 bits have to be stretched" in line


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.95,) * 3, (0.2,) * 3), ((0.5, 0.02, 0.5), (1.0, 0.1, 1.0))],
)
def test_a_mean_of_other_units(tmp_path, mean, std):
    [line] = lines(tmp_path, files.pixels(), mean=mean, std=std)
    assert "not 0..255" in line and "config.data.mean=" in line


def test_usual_pixels(tmp_path):
    assert lines(tmp_path, files.pixels()) == []


def test_padding_is_no_black(tmp_path):
    config = label_map_files.recipe(files.write(tmp_path, label_map_files.pairs()))
    assert pixel_checks.warnings(config, source.load(config, "training")) == []
    # Long pictures, which leave most of a square canvas.
    lists = coco_files.content()
    for image in lists["images"]:
        image["height"] = 8
    lists["annotations"] = [coco_files.annotation(1, 50, (1, 1, 5, 5))]
    config = coco_files.recipe(coco_files.write(tmp_path / "coco", lists))
    dataset = source.load(config, "train", ("boxes",), evaluate=True)
    assert pixel_checks.warnings(config, dataset) == []
