# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is said and drawn of labels before step 0."""

import numpy as np

import runs
from g2sd_jax.data import dataset as datasets
from g2sd_jax.tasks import first_batch


def labelled(labels, classes=()):
    image = np.zeros((len(labels), 16, 16, 3), np.uint8)
    config = runs.small("finetune")
    return datasets.in_memory(config, image, np.array(labels), classes)


def test_class_lines_name_the_most_the_least_and_the_empty():
    config = runs.small("finetune", batch=2)
    dataset = labelled([1, 1, 1, 3, 3, 0], ("a", "b", "c", "d", "e"))
    second, third = first_batch.class_lines(config, dataset)
    assert second == "labels: b 3, d 2, a 1"
    assert third == "labels without an example: c, e, 2 of 5"
    with_all = labelled([0, 1, 2, 3, 4])
    assert first_batch.class_lines(config, with_all) == [
        "labels: 0 1, 1 1, 2 1, 3 1, 4 1"
    ]
    # A cut split is counted as it is used.
    cut = dataset._replace(count=3)
    assert first_batch.class_lines(config, cut)[0] == "labels: b 3"
    assert first_batch.class_lines(config, dataset._replace(labels=None)) == []


def test_many_classes_are_told_from_both_ends():
    config = runs.small("finetune", batch=2)
    config.data.classes = 40
    labels = np.repeat(np.arange(20), np.arange(1, 21))
    image = np.zeros((len(labels), 16, 16, 3), np.uint8)
    dataset = datasets.in_memory(config, image, labels)
    assert first_batch.class_lines(config, dataset) == [
        "labels: 19 20, 18 19, 17 18, 16 17, 15 16 … 4 5, 3 4, 2 3, 1 2, 0 1",
        "labels without an example: 20, 21, 22, 23, 24 and 15 more, 20 of 40",
    ]


def test_captions_say_what_was_mixed():
    config = runs.small("finetune")
    smoothing, names = config.augment.smoothing, ("a", "b", "c", "d", "e")
    one, other = np.eye(5)[1], np.eye(5)[4]
    mixed = np.stack([one, 0.75 * one + 0.25 * other, 0.2 * one + 0.8 * other])
    picture = first_batch.class_picture(smoothing)
    caption = lambda names, **example: (
        picture({"image": None, **example}, names).caption
    )
    captions = [
        caption(names, target=target * (1 - smoothing) + smoothing / 5, label=1)
        for target in mixed
    ]
    assert smoothing > 0
    assert captions == ["b", "b, 75%\ne, 25%", "e, 80%\nb, 20%"]
    assert caption((), label=3) == "3"
    assert caption(names) == ""


def pixels(**counted_pixels):
    """[256] counts by label, those of 255 as `ignored`."""
    counted = np.zeros(256, np.int64)
    counted[255] = counted_pixels.pop("ignored", 0)
    for label, count in counted_pixels.items():
        counted[int(label[1:])] = count
    return counted


def test_pixels_are_told_by_name_and_mistakes_plainly():
    config = runs.small("finetune:task=segmentation")
    config.data.reduce_zero_label = False
    names = ("sky", "road", "car", "tree", "pole")
    told = first_batch.pixel_lines(
        config, pixels(_1=60, _0=25, _4=5, ignored=10), names
    )
    assert told == [
        "pixels of the first batch: road 60.0%, sky 25.0%, pole 5.0%; 10.0% ignored "
        "or padded",
        "classes without a pixel in it: car, tree",
    ]
    for counted_pixels, wrong in (
        (dict(ignored=7), "WARNING: every pixel of the first batch is ignored"),
        (dict(_1=2, _2=2, ignored=96), "WARNING: 96.0% of the first batch's pixels"),
        (dict(_2=9, ignored=1), "WARNING: all of the first batch is car"),
    ):
        *_, last = first_batch.pixel_lines(config, pixels(**counted_pixels), names)
        assert last.startswith(wrong) and "config.data.ignore=()" in last
        assert "mask of 0 and 255 has to be stored as 0 and 1" in last
    config.data.reduce_zero_label = True
    *_, last = first_batch.pixel_lines(config, pixels(_0=25, ignored=75), names)
    assert "Stored label 0 is ignored: set config.data.reduce_zero_label=False" in last
    config.data.reduce_zero_label = False
    *_, last = first_batch.pixel_lines(config, pixels(_0=9), names)
    assert last.startswith("WARNING: all of") and "is ignored" not in last
    config.data.classes = 40
    counted_pixels = pixels(**{f"_{label}": 100 - label for label in range(25)})
    first, second = first_batch.pixel_lines(config, counted_pixels, ())
    assert "7 4.2%, 8 4.2%, 9 4.1%, …, 15 3.9%, 16 3.8%" in first
    assert second.endswith("25, 26, 27, 28, 29, 30, 31, 32, 33, 34 and 5 more")


def test_what_cannot_be_learned_or_judged_is_warned_of():
    config = runs.small("finetune", batch=2)
    names = ("a", "b", "c", "d", "e")
    train, judged = labelled([0, 1, 2, 2, 3, 4], names), labelled([0, 0, 3, 4], names)
    lines = first_batch.class_lines(
        config, train, evaluation=lambda: judged._replace(notes=("a note",))
    )
    assert lines[1] == "a note"
    assert lines[2].startswith("WARNING: 2 of 5 classes have no picture in split 'val'")
    assert lines[2].endswith("b, c.")
    lines = first_batch.class_lines(
        config, labelled([1, 1], names), evaluation=lambda: judged
    )
    assert any("all pictures are of one class, b 2" in line for line in lines)
    everything = labelled([0, 1, 2, 3, 4], names)
    lines = first_batch.class_lines(config, everything, evaluation=lambda: everything)
    assert len(lines) == 1
