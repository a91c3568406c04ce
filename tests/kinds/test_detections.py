# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is written of detections: COCO's results, a sentence, a drawing."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

import coco_files
from g2sd_jax.data.coco import run_lengths
from g2sd_jax.evaluators import instances
from g2sd_jax.kinds import detections

SIZE = coco_files.SIZE
BOXES = np.array([[3, 4, 15, 20], [10, 10, 40, 30], [0, 0, 5, 5]], np.float64)


@pytest.fixture
def three():
    """A sure owl, a sure cat, and a cat that is not drawn."""
    masks = [
        run_lengths.encode(coco_files.bitmap((int(x), int(y), 5, 5)))
        for x, y, *_ in BOXES
    ]
    scores = np.array([0.91234567, 0.5, 0.06])
    return instances.Instances(np.array([2, 0, 0], np.int32), scores, BOXES, masks)


def test_results_are_read_by_pycocotools(three, tmp_path):
    path = coco_files.write(tmp_path)
    truth = COCO(str(path / "train.json"))
    ids = [key for key, _ in coco_files.CATEGORIES]
    results = detections.to_results(three, 50, ids, "pictures/50.jpg")
    (tmp_path / "results.json").write_text(json.dumps(results))
    read = truth.loadRes(str(tmp_path / "results.json"))
    entries = read.loadAnns(read.getAnnIds(imgIds=[50]))
    assert [entry["category_id"] for entry in entries] == [90, 3, 3]
    assert [entry["bbox"] for entry in entries][1] == [10, 10, 30, 20]
    assert entries[0]["score"] == 0.91235
    mask = run_lengths.decode(read.annToRLE(entries[0]))
    np.testing.assert_array_equal(mask, coco_files.bitmap((3, 4, 5, 5)))
    counted = detections.to_results(three, 50, None, "50.jpg")
    assert [entry["category_id"] for entry in counted] == [3, 1, 1]


def test_numbers_of_files():
    as_named = detections.image_ids(["a/000000000139.jpg", "b/285.png"])
    assert as_named == {"a/000000000139.jpg": 139, "b/285.png": 285}
    assert detections.image_ids(["139.jpg", "b.jpg"]) == {"139.jpg": 1, "b.jpg": 2}


def test_sentence(three):
    names = ("cat", "dog", "owl")
    sentence = detections.sentence(three, names)
    assert sentence == "owl 1, cat 1 (2 of 3 detections above 0.5)"
    nothing = instances.Instances(*(each[:0] for each in three))
    sentence = detections.sentence(nothing, ())
    assert sentence == "nothing (0 of 0 detections above 0.5)"


def test_only_the_sure_ones_are_drawn(three):
    pixels = np.full((*SIZE, 3), 128, np.uint8)
    drawn = np.array(detections.draw(pixels, three, ("cat", "dog", "owl")))
    factor = drawn.shape[0] // SIZE[0]
    assert (drawn[: 4 * factor, : 3 * factor] == 128).all()
    assert (drawn[20 * factor : 30 * factor] != 128).any()
