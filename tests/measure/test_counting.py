# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Layouts of own label maps and own objects, as a chain finds them."""

import json

import numpy as np
import pytest

import coco_files
import files
import label_map_files
from g2sd_jax.measure import counting

MAPS = dict(images="", labels="", split="", ignore="", names="")
OBJECTS = dict(images="", annotations="", split="")
PAIRS = label_map_files.pairs()  # Five in each split, of labels 0 to 4.


def moved(*places):
    """The pairs with parts of their paths replaced."""
    contents = PAIRS
    for old, new in places:
        contents = {name.replace(old, new): data for name, data in contents.items()}
    return contents


@pytest.mark.parametrize(
    ("contents", "images", "labels", "split"),
    [
        (PAIRS, "images/{split}/*", "annotations/{split}/*", "training+validation"),
        (
            moved(
                ("images/training", "train/images"),
                ("images/validation", "test/images"),
                ("annotations/training", "train/masks"),
                ("annotations/validation", "test/masks"),
            ),
            "{split}/images/*",
            "{split}/masks/*",
            "train+test",
        ),
        (
            moved(
                ("images/training", "train"),
                ("images/validation", "val"),
                ("annotations/training", "trainannot"),
                ("annotations/validation", "valannot"),
            ),
            "{split}/*",
            "{split}annot/*",
            "train+val",
        ),
        (
            moved(
                ("training/", "a_"), ("validation/", "b_"), ("annotations", "labels")
            ),
            "images/*",
            "labels/*",
            "hold_out",
        ),
    ],
    ids=["ade20k", "split first", "segnet", "no splits"],
)
def test_label_maps_are_where_they_usually_are(
    tmp_path, contents, images, labels, split
):
    root = files.write(tmp_path, contents)
    facts = counting.count_maps(str(root), MAPS)
    assert (facts["images"], facts["labels"], facts["split"]) == (images, labels, split)
    pictures = 8 if split == "hold_out" else 5
    assert (facts["pictures"], facts["classes"]) == (pictures, 5)
    assert 48 <= facts["side"] <= 60


def test_label_maps_are_where_the_arguments_say(tmp_path):
    root = files.write(tmp_path, moved(("annotations", "truth"), ("training", "a")))
    with pytest.raises(ValueError, match=r"its folders: .*truth.* Say where, such as"):
        counting.count_maps(str(root), MAPS)
    options = MAPS | dict(
        images="images/{split}/*.jpg", labels="truth/{split}/*.png", ignore="0"
    )
    facts = counting.count_maps(str(root), options | dict(split="a+validation"))
    assert (facts["classes"], facts["split"]) == (4, "a+validation")
    with pytest.raises(ValueError, match=r"no files images/train/\*\.jpg"):
        counting.count_maps(str(root), options)


def test_a_class_of_the_evaluation_split_alone_counts(tmp_path):
    contents = dict(PAIRS)
    more = np.full(label_map_files.SIZE, 7, np.uint8)
    contents["annotations/validation/ADE_0.png"] = files.encode(more, "PNG")
    facts = counting.count_maps(str(files.write(tmp_path, contents)), MAPS)
    assert facts["classes"] == 8


def test_masks_of_0_and_255_are_refused(tmp_path):
    mask = np.zeros(label_map_files.SIZE, np.uint8)
    mask[:20] = 255
    data = files.encode(mask, "PNG")
    contents = {n: data if n.endswith(".png") else d for n, d in PAIRS.items()}
    root = files.write(tmp_path, contents)
    with pytest.raises(ValueError, match="store a mask of 0 and 255 as 0 and 1"):
        counting.count_maps(str(root), MAPS)


def test_objects_are_where_they_usually_are(tmp_path):
    for split in ("train", "val"):
        coco_files.write(tmp_path, split=split)
    facts = counting.count_objects(str(tmp_path), OBJECTS)
    places = facts["images"], facts["annotations"], facts["split"]
    assert places == ("{split}", "{split}.json", "train+val")
    counts = facts["pictures"], facts["classes"], facts["objects"], facts["side"]
    assert counts == (3, 3, 3, 60)  # Two of five pictures have no object.


def test_one_json_holds_a_share_out(tmp_path):
    lists = coco_files.content(count=9)
    files.write(tmp_path / "images", coco_files.pictures(lists))
    (tmp_path / "annotations.json").write_text(json.dumps(lists))
    facts = counting.count_objects(str(tmp_path), OBJECTS)
    assert (facts["images"], facts["annotations"]) == ("images", "annotations.json")
    assert facts["split"] == "hold_out" and 4 <= facts["pictures"] <= 6


def test_a_folder_without_json_is_told_what_to_name(tmp_path):
    files.write(tmp_path, PAIRS)
    with pytest.raises(ValueError, match=r"folders: annotations, images\)\. Say where"):
        counting.count_objects(str(tmp_path), OBJECTS)
