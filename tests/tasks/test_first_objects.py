# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is printed and drawn of objects before step 0."""

import numpy as np

import coco_files
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import source
from g2sd_jax.data.memory import fake
from g2sd_jax.tasks import first_objects

ANCHORS = (8, 16, 32, 64, 128)
READS = ("boxes",)


def test_lines_of_a_json(tmp_path):
    config = coco_files.recipe(coco_files.write(tmp_path))
    dataset = source.load(config, "train", READS)
    evaluation = lambda: source.load(config, "train", READS, evaluate=True)
    lines = first_objects.object_lines(config, ANCHORS, dataset, {}, evaluation)
    assert lines == [
        "objects: 6 in 3 pictures, 1 to 3 in one (median 2); config.data.max_boxes=3",
        "objects of each class: cat 3, dog 2, owl 1",
        "sizes on a canvas of 64 x 64, as roots of the areas of boxes: 5 % below 14.7 "
        "pixels, half below 14.8, 5 % above 14.8; anchors: 8, 16, 32, 64, 128",
    ]
    warned = first_objects.object_lines(config, (64, 128), dataset, {}, evaluation)
    assert any(
        "100% of the objects are smaller than half of the sm" in w for w in warned
    )
    warned = first_objects.object_lines(config, (2, 4), dataset, {}, evaluation)
    assert any("100% of the objects are more than twice as large" in w for w in warned)


def test_lines_of_many_classes_and_of_what_is_left_out():
    counts = [0, 30, *range(1, 13)]
    labels = np.repeat(np.arange(14), counts).astype(np.int32)
    sides = np.full((len(labels), 2), 20.0)
    objects = datasets.Objects(labels, np.zeros(len(labels), np.int64), sides)
    config = coco_files.recipe("", classes=14)
    dataset = datasets.Dataset(2, (), None, None, notes=("same",), objects=objects)
    other = dataset._replace(notes=("same", "WARNING: 3 of 9 annotations"))
    lines = first_objects.object_lines(config, ANCHORS, dataset, {}, lambda: other)
    assert lines[0] == "WARNING: 3 of 9 annotations"  # What was not printed already.
    assert lines[1].startswith("objects: 108 in 2 pictures, 0 to 108 in one")
    assert lines[2] == (
        "objects of each class: 1 30, 13 12, 12 11, 11 10, 10 9, …, 6 5, 5 4, 4 3, "
        "3 2, 2 1"
    )
    assert lines[3] == "classes without an object: 0, 1 of 14"


def test_invented_objects_are_counted_by_their_batch():
    config = coco_files.recipe("", source="fake")
    dataset = source.load(config, "train", READS)
    batch = dataset.fetch(np.arange(2))
    [line] = first_objects.object_lines(config, ANCHORS, dataset, batch)
    assert line == "objects: up to 3 in each of the 2 pictures of a batch"


def test_picture():
    layout = dict(max_boxes=4, mask_size=28)
    dataset = fake.dataset(8, (64, 64), 3, 2, READS, layout=layout)
    batch = dataset.fetch(np.arange(8))
    for row in range(8):
        example = {name: values[row] for name, values in batch.items()}
        picture = first_objects.object_picture(example, ("cat", "dog"))
        count = example["valid_boxes"].sum()
        labels = sorted(set(example["labels"][: int(count)].tolist()))
        assert [label for label, _ in picture.legend] == labels
        changed = (picture.beside != picture.image).any(axis=-1)
        covered = np.zeros((64, 64), bool)
        for x1, y1, x2, y2 in example["boxes"][: int(count)]:
            covered[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
        assert not changed[~covered].any()
        if count:
            assert changed.mean() > 0.4 * covered.mean()
            names = [word.split()[0] for word in picture.caption.split(", ")]
            assert {*names} == {("cat", "dog")[label] for label in labels}
        else:
            assert picture.caption == "no object" and not changed.any()
