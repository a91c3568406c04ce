# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""COCO jsons: read, matched with their pictures, jittered, and refused by name."""

import copy
import json
import sys

import numpy as np
import pytest
from PIL import Image

import coco_files
import files
from coco_files import CATEGORIES, SIZE, annotation, as_json, bitmap
from g2sd_jax.data import source
from g2sd_jax.data.coco import annotations as coco_json
from g2sd_jax.data.coco import instances, jitter, run_lengths
from g2sd_jax.data.coco import source as coco

READS = ("boxes", "labels", "valid_boxes", "masks", "frames", "size")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar and gzip"])
def test_every_annotation_of_every_picture(tmp_path, packed):
    lists = coco_files.content(folder="deep/er/")
    coco_files.write(tmp_path, lists, packed=packed)
    config = coco_files.recipe(tmp_path, packed)
    dataset = source.load(config, "train", READS, evaluate=True)
    assert (dataset.count, dataset.classes) == (5, ("cat", "dog", "owl"))
    assert dataset.describe == dict(category_ids=[key for key, _ in CATEGORIES])
    assert any("3 is 0 cat, 7 is 1 dog, 90 is 2 owl" in note for note in dataset.notes)
    originals = [dataset.original(index) for index in range(5)]
    assert [each["image_id"] for each in originals] == [10, 20, 30, 40, 50]
    by_id = {image["id"]: image for image in lists["images"]}
    for original in originals:
        image = by_id[original["image_id"]]
        assert original["size"] == (image["height"], image["width"])
        mine = [a for a in lists["annotations"] if a["image_id"] == image["id"]]
        assert len(original["masks"]) == len(mine)
        for row, wanted in enumerate(mine):
            x, y, width, height = wanted["bbox"]
            assert original["boxes"][row].tolist() == [x, y, x + width, y + height]
            label = [key for key, _ in CATEGORIES].index(wanted["category_id"])
            assert original["labels"][row] == label
            assert original["crowd"][row] == wanted["iscrowd"]
            decoded = run_lengths.decode(original["masks"][row])
            size = original["size"]
            np.testing.assert_array_equal(decoded, bitmap(wanted["bbox"], size))
    # As they are, enlarged to fit, without targets.
    batch = dataset.fetch(np.arange(5))
    assert set(batch) == {"image", "size", "index", "valid"}
    assert (batch["size"].max(axis=1) == 64).all() and batch["valid"].all()


def test_training_sees_objects_alone(tmp_path):
    config = coco_files.recipe(coco_files.write(tmp_path))
    dataset = source.load(config, "train", READS)
    assert dataset.count == 3  # Two have none: one is empty, one has a crowd.
    assert any("2 of 5 pictures without an object" in note for note in dataset.notes)
    batch = dataset.fetch(np.arange(3), 0)
    real = batch["valid_boxes"]
    assert real.sum() <= 6 and real.any(axis=1).all()
    assert batch["masks"].dtype == np.uint8 and set(np.unique(batch["masks"])) == {0, 1}
    # Rectangles fill their boxes.
    assert batch["masks"][real].all() and not batch["masks"][~real].any()
    np.testing.assert_array_equal(batch["frames"][real], batch["boxes"][real])
    assert (batch["frames"][~real] == [0, 0, 1, 1]).all()
    outside = np.arange(64)[None] >= batch["size"][:, :1]
    assert not batch["image"][outside].any()
    counted = np.bincount(dataset.objects.labels).tolist()
    assert counted == [3, 2, 1] and dataset.objects.examples.tolist() == [0] * 3 + [
        1
    ] * 2 + [2]


def test_crowds_alone_are_judged_and_not_trained_on(tmp_path):
    lists = changed(annotations=lambda entries: [e | dict(iscrowd=1) for e in entries])
    config = coco_files.recipe(coco_files.write(tmp_path, lists))
    with pytest.raises(
        ValueError, match=r"'train' of .* has no picture with an object"
    ):
        source.load(config, "train", READS)
    judged = source.load(config, "train", READS, evaluate=True)
    crowds = [judged.original(index)["crowd"] for index in range(judged.count)]
    assert len(crowds) == 5 and np.concatenate(crowds).all()
    assert sum(map(len, crowds)) == len(lists["annotations"])


def test_invented_batches_are_laid_out_as_real_ones(tmp_path):
    config = coco_files.recipe(coco_files.write(tmp_path))
    real = source.load(config, "train", READS).fetch(np.arange(2), 0)
    invented = source.invented(config, 2, READS)
    for name, array in invented.items():
        assert (array.shape, array.dtype) == (real[name].shape, real[name].dtype), name
    assert {*real} == {*invented, "index", "valid"}


def test_batches_depend_on_seed_epoch_and_example_alone(tmp_path):
    path = coco_files.write(tmp_path)
    dataset = source.load(coco_files.recipe(path), "train", READS)
    both, again = dataset.fetch(np.array([2, 1]), 3), dataset.fetch(np.array([1]), 3)
    for name in ("image", *READS):
        np.testing.assert_array_equal(both[name][1:], again[name])
    config = coco_files.recipe(path)
    config.seed = 1
    other = source.load(config, "train", READS).fetch(np.array([1]), 3)
    assert (other["size"] != again["size"]).any()
    assert (dataset.fetch(np.array([1]), 4)["boxes"] != again["boxes"]).any()


def test_more_objects_than_boxes(tmp_path):
    path = coco_files.write(tmp_path)
    config = coco_files.recipe(path, max_boxes=2)
    words = r"1 of 3 pictures have more .*max_boxes=2 .*p3.jpg has 3.*max_boxes=3, or"
    with pytest.raises(ValueError, match=words):
        source.load(config, "train", READS)
    source.load(config, "train", READS, evaluate=True)  # Which holds no boxes.
    config.data.surplus = "sample"
    config.augment.scale = (1.0, 1.0)
    dataset = source.load(config, "train", READS)
    samples = set()
    for epoch in range(12):
        batch = dataset.fetch(np.array([0]), epoch)
        assert batch["valid_boxes"].all()
        samples.add(tuple(batch["labels"][0].tolist()))
    assert samples == {(0, 1), (0, 2), (1, 2)}
    config.data.surplus = "drop"
    with pytest.raises(ValueError, match=r"data\.surplus='drop' is not known"):
        source.load(config, "train", READS)


# What is seen of an object.


def view(**changes):
    """All of a 48 x 60 picture, one to one."""
    defaults = dict(size=SIZE, flipped=False, resized=SIZE, corner=(0, 0), shown=SIZE)
    return jitter.View(**defaults | changes)


def as_instance(box=None, mask=None):
    """An object with a rectangle as polygon, or with a bitmap as run lengths."""
    entry = annotation(1, 1, box or (0, 0, 1, 1))
    if mask is not None:
        entry["segmentation"] = as_json(mask)
    return coco_json.to_instance(entry, 0, SIZE)


VIEWS = {
    "as it is": view(),
    "flipped": view(flipped=True),
    "twice as large": view(resized=(96, 120), shown=(96, 120)),
    "cropped": view(corner=(10, 20), shown=(30, 30)),
    "all": view(flipped=True, resized=(96, 120), corner=(13, 31), shown=(64, 64)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_polygons_and_run_lengths_show_the_same(name):
    """Of rectangles on whole pixels both are exact, whatever the view does to them."""
    seen_from = VIEWS[name]
    box = (8, 6, 34, 22)
    polygon, bits = as_instance(box), as_instance(mask=bitmap(box))
    assert polygon.polygons and bits.rle
    a, b = (instances.show([each], seen_from, 28) for each in (polygon, bits))
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.masks, b.masks)
    # By hand: a mirrored, enlarged, cropped picture of the mask.
    picture = bitmap(box)[:, :: -1 if seen_from.flipped else 1]
    factor = seen_from.resized[0] // SIZE[0]
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    (y, x), (height, width) = seen_from.corner, seen_from.shown
    rows, columns = np.nonzero(picture[y : y + height, x : x + width])
    wanted = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert a.boxes.tolist() == [list(wanted)]


def test_run_lengths_are_resized_to_the_nearest_pixel(rng):
    """As Pillow does it, then cropped; the box is the tight one of whole pixels."""
    mask = (rng.random(SIZE) < 0.3).astype(np.uint8)
    mask[:5], mask[:, 50:] = 0, 0
    # Sizes at which no middle of a pixel lies on an edge, where rounding decides.
    for resized, (y, x) in (
        ((64, 128), (20, 40)),
        ((96, 64), (30, 20)),
        ((32, 20), (4, 4)),
    ):
        seen_from = view(flipped=True, resized=resized, corner=(y, x), shown=(16, 15))
        picture = Image.fromarray(mask[:, ::-1]).resize(resized[::-1], 0)
        wanted = np.asarray(picture)[y : y + 16, x : x + 15]
        box, masks, _ = instances.show([as_instance(mask=mask)], seen_from, 16 * 15)
        rows, columns = np.nonzero(wanted)
        tight = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert box.tolist() == [list(tight)]
        x1, y1, x2, y2 = tight
        # As many samples as pixels or a multiple of them: every pixel is there.
        inside = wanted[y1:y2, x1:x2]
        places = [(np.arange(240) + 0.5) * side / 240 for side in inside.shape]
        sampled = inside[np.ix_(*(place.astype(int) for place in places))]
        np.testing.assert_array_equal(masks[0], sampled)


def test_objects_that_are_cropped_away():
    outside, inside = as_instance((0, 0, 8, 8)), as_instance((20, 20, 8, 8))
    bits = as_instance(mask=bitmap((0, 0, 8, 8)))
    # One that touches the window in an edge alone has no area there.
    seen_from = view(corner=(8, 8), shown=(40, 40))
    shown = instances.show([outside, bits, inside], seen_from, 28)
    assert shown.rows.tolist() == [2]
    assert shown.boxes.tolist() == [[12.0, 12.0, 20.0, 20.0]]
    nothing = instances.show([outside, bits], seen_from, 28)
    assert nothing.boxes.shape == (0, 4) and nothing.masks.shape == (0, 28, 28)


def test_a_polygon_that_the_window_divides():
    """A U whose bottom is cut off: two parts, and one box around both."""
    points = [[0, 0, 4, 0, 4, 10, 12, 10, 12, 0, 16, 0, 16, 14, 0, 14]]
    each = coco_json.to_instance(
        annotation(1, 1, (0, 0, 16, 14)) | dict(segmentation=points), 0, SIZE
    )
    shown = instances.show([each], view(shown=(8, 60)), 32)
    assert shown.boxes.tolist() == [[0.0, 0.0, 16.0, 8.0]]
    columns = shown.masks[0].mean(axis=0)
    assert columns[:8].all() and columns[24:].all() and not columns[8:24].any()


def test_tiny_and_canvas_sized_objects():
    one, whole = bitmap((7, 9, 1, 1)), np.ones(SIZE, np.uint8)
    shown = instances.show(
        [as_instance(mask=one), as_instance((7, 9, 1, 1)), as_instance(mask=whole)],
        view(),
        28,
    )
    wanted = [[7, 9, 8, 10], [7, 9, 8, 10], [0, 0, 60, 48]]
    assert shown.boxes.tolist() == wanted and shown.masks.all()


def test_a_very_long_picture_keeps_a_pixel():
    draws, augment = jitter.Draws(1.0, 0.0, 0.0), coco_files.recipe("").augment
    seen_from = jitter.training_view((3, 2000), (64, 64), draws, augment)
    assert seen_from.resized == (1, 32)
    assert jitter.resize(np.zeros((3, 2000, 1), np.uint8), seen_from).shape == (
        1,
        32,
        1,
    )


# What is refused, and what is counted.


def changed(**changes):
    """`content` with some of its lists replaced by functions of them."""
    lists = copy.deepcopy(coco_files.content())
    for key, change in changes.items():
        lists[key] = change(lists[key])
    return lists


def first(**keys):
    """A change of the first entry of a list."""
    return lambda entries: [entries[0] | keys, *entries[1:]]


def double(entries):
    return [*entries, entries[0]]


REFUSED = {
    "an id of two pictures": (dict(images=double), "1 ids of images occur more than"),
    "an id of two annotations": (
        dict(annotations=double),
        r"ids of annotations occur more than once \(1\)",
    ),
    "an id of two categories": (dict(categories=double), "ids of categories occur"),
    "an unknown category": (
        dict(annotations=first(category_id=5)),
        "1 annotations are of the category ids 5, which its categories do not have",
    ),
    "a text as id": (dict(images=first(id="7")), "no whole numbers, such as '7'"),
    "no height": (dict(images=first(height=0)), r"'p0.jpg' is 0 x 60 pixels"),
    "no file name": (dict(images=first(file_name="")), "give its path beneath"),
    "a key that is missing": (
        dict(annotations=lambda entries: [{"id": 1}]),
        r"annotations\[0\] has no image_id, category_id",
    ),
    "spellings of one class": (
        dict(categories=lambda entries: [*entries, dict(id=91, name="Cat")]),
        "differ in spelling only",
    ),
    "no mask at all": (
        dict(annotations=lambda e: [each | dict(segmentation=[]) for each in e]),
        r"none of its 8 annotations can be used: no mask 8 .*Boxes alone train no mask",
    ),
    "another size": (
        dict(images=first(height=50), annotations=lambda entries: entries[:1]),
        r"p0.jpg has \(50, 60\) pixels \(height, width\), but the json says \(48, 60\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    changes, words = REFUSED[name]
    lists = changed(**changes)
    if name == "another size":
        coco_files.write(tmp_path, lists)
        lists = changed(annotations=lambda entries: entries[:1])
        (tmp_path / "train.json").write_text(json.dumps(lists))
    else:
        (tmp_path / "train").mkdir()
        (tmp_path / "train.json").write_text(json.dumps(lists))
    with pytest.raises(ValueError, match=words):
        source.load(coco_files.recipe(tmp_path), "train", READS, evaluate=True)


def test_files_that_are_no_such_json(tmp_path):
    path = tmp_path / "a.json"
    whole = json.dumps(coco_files.content()).encode()
    for data, words in (
        (whole[:-40], "is no json, or not all of it"),
        (b"\x1f\x8b\x08\x00" + whole, "cannot be read"),
        (b"[]", "is a list, but no images"),
        (b'{"images": [], "shapes": 1}', "has the keys images, shapes, but no annot"),
        (b'{"images": 1, "annotations": [], "categories": []}', "'images' is no list"),
        (b"\xff\xfe\x00", "is no json"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            coco_json.read(path)


SPOILT = {
    "no mask": dict(segmentation=None),
    "polygons of fewer than three points": dict(segmentation=[[1, 2, 3, 4], [5]]),
    "a polygon whose coordinates are no numbers": dict(
        segmentation=[[1, 2, 3, 4, 5, float("nan")]]
    ),
    "a mask that is neither polygons nor run lengths": dict(segmentation=[1, 2, 3, 4]),
    "run lengths without a pixel": dict(segmentation=as_json(bitmap((0, 0, 0, 0)))),
    "run lengths of another size than the picture": dict(
        segmentation=as_json(bitmap((1, 1, 3, 3), (60, 48)))
    ),
    "run lengths that do not fill the picture": dict(
        segmentation=dict(size=list(SIZE), counts=[3, 4])
    ),
    "a box without area": dict(bbox=[1, 2, 0, 4]),
    "a box that is not x, y, width, height": dict(bbox=[1, 2, 3]),
    "a picture that it does not name": dict(image_id=1234),
}


def test_spoilt_objects_are_counted_by_their_reason(tmp_path):
    """Each of them leaves out one object, and all others stay."""
    spoilt = [
        annotation(100 + i, 50, (1, 2, 10, 10)) | keys
        for i, keys in enumerate(SPOILT.values())
    ]
    lists = changed(annotations=lambda entries: entries + spoilt)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(lists))
    annotations = coco_json.read(path)
    assert sum(len(image.instances) for image in annotations.images) == 8
    [note] = [note for note in annotations.notes if "left out" in note]
    assert f"{len(SPOILT)} of {8 + len(SPOILT)} annotations are left out" in note
    for i, reason in enumerate(SPOILT):
        assert f"{reason} 1 (annotations {100 + i})" in note


def test_one_good_polygon_is_enough():
    entry = annotation(1, 1, (1, 1, 4, 4))
    entry["segmentation"].insert(0, [1, 2, 3, 4])
    assert len(coco_json.to_instance(entry, 0, SIZE).polygons) == 1


def test_what_a_mask_knows_need_not_be_annotated():
    for segmentation in (
        [coco_files.rectangle(4, 6, 10, 8)],
        as_json(bitmap((4, 6, 10, 8))),
    ):
        entry = dict(image_id=1, category_id=3, segmentation=segmentation)
        instance = coco_json.to_instance(entry, 0, SIZE)
        assert (instance.box, instance.area) == ((4.0, 6.0, 14.0, 14.0), 80.0)
        assert not instance.crowd


def test_boxes_that_leave_their_picture_are_counted(tmp_path):
    lists = changed(annotations=first(bbox=[40, 20, 52, 36]))
    notes = coco_json.check(lists, "a.json").notes
    assert any("1 of 8 boxes leave their picture by more" in note for note in notes)
    assert not any("x1, y1, x2, y2" in note for note in notes)
    wrong = lambda entries: [each | dict(bbox=[40, 20, 52, 36]) for each in entries]
    notes = coco_json.check(changed(annotations=wrong), "a.json").notes
    assert any("Is a box x1, y1, x2, y2 there?" in note for note in notes)


def test_splits_have_the_same_categories(tmp_path):
    path = coco_files.write(tmp_path)
    other = changed(categories=first(name="eagle"))
    coco_files.write(path, other, "val")
    config = coco_files.recipe(path, eval_split="val")
    with pytest.raises(ValueError, match="only one of the two json has: 90 eagle, 90"):
        source.load(config, "train", READS)


def test_files_by_their_names(tmp_path):
    lists = coco_files.content(folder="a/")
    coco_files.write(tmp_path, lists)
    # The json may leave folders out, or name those above.
    for rename in (lambda name: name[2:], lambda name: f"./data/train/{name}"):
        renamed = copy.deepcopy(lists)
        for image in renamed["images"]:
            image["file_name"] = rename(image["file_name"])
        (tmp_path / "train.json").write_text(json.dumps(renamed))
        config = coco_files.recipe(tmp_path)
        assert source.load(config, "train", READS).count == 3
    (tmp_path / "train.json").write_text(json.dumps(lists))
    files.write(tmp_path / "train", {"b/p9.jpg": files.encode(files.pixels())})
    dataset = source.load(config, "train", READS)
    assert any("1 pictures are not in the json" in note for note in dataset.notes)
    # Two that may be meant.
    files.write(tmp_path / "train", {"b/p1.jpg": files.encode(files.pixels())})
    for image in lists["images"]:
        image["file_name"] = image["file_name"][2:]
    (tmp_path / "train.json").write_text(json.dumps(lists))
    words = r"several files that the json may mean by 'p1.jpg': a/p1.jpg, b/p1.jpg"
    with pytest.raises(ValueError, match=words):
        source.load(config, "train", READS)


def test_missing_files(tmp_path):
    path = coco_files.write(tmp_path)
    (path / "train" / "p3.jpg").unlink()
    words = r"1 of 5 pictures of the json are not in .*train \(p3.jpg\), which holds 4"
    with pytest.raises(ValueError, match=words):
        source.load(coco_files.recipe(path), "train", READS)
    config = coco_files.recipe(path, annotations="instances_{split}.json")
    words = r"there is no .*instances_train.json for split 'train'.*holds train, train."
    with pytest.raises(ValueError, match=words):
        source.load(config, "train", READS)
    config = coco_files.recipe(path, images="train.json")
    with pytest.raises(ValueError, match=r"train\.json is not a folder, or a \.tar"):
        source.load(config, "train", READS)


def test_pictures_that_exif_turns(tmp_path):
    path = coco_files.write(tmp_path)
    image = Image.fromarray(files.pixels((60, 48)))
    exif = image.getexif()
    exif[0x0112] = 6
    (path / "train" / "p0.jpg").write_bytes(files.encode(image, exif=exif))
    # 48 x 60 once it is upright, as the json says.
    source.load(coco_files.recipe(path), "train", READS, evaluate=True)
    image = Image.fromarray(files.pixels(SIZE))
    (path / "train" / "p0.jpg").write_bytes(files.encode(image, exif=exif))
    with pytest.raises(ValueError, match="annotated as it is stored: remove that tag"):
        source.load(coco_files.recipe(path), "train", READS, evaluate=True)


def test_unreadable_pictures_are_replaced_in_training_alone(tmp_path):
    path = coco_files.write(tmp_path)
    (path / "train" / "p1.jpg").write_bytes(b"\xff\xd8 no picture")
    config = coco_files.recipe(path, max_bad_share=0.5)
    training = source.load(config, "train", READS)
    batch = training.fetch(np.array([2]), 0)
    assert batch["valid"].all() and batch["index"][0] == 0
    judged = source.load(config, "train", READS, evaluate=True)
    assert judged.fetch(np.arange(5))["valid"].tolist() == [True] * 3 + [False, True]


def test_a_share_of_one_json_is_held_out(tmp_path):
    path = coco_files.write(tmp_path, coco_files.content(10))
    keys = dict(images="train", annotations="train.json", hold_out=0.2)
    config = coco_files.recipe(path, **keys, eval_split="val")
    splits = [coco.list_pictures(config, split) for split in ("train", "val")]
    assert [files.count for _, files in splits] == [8, 2]
    ids = [{image.id for image in annotations.images} for annotations, _ in splits]
    assert len(ids[0] | ids[1]) == 10
    for annotations, listed in splits:
        for index, image in enumerate(annotations.images):
            assert listed.name(index).endswith(image.name)
    assert source.load(config, "val", READS, evaluate=True).count == 2


def test_keys_that_no_json_needs(tmp_path):
    path = coco_files.write(tmp_path)
    words = r"config\.data\.hold_out=0\.2, but config\.data\.images=.* has {split}"
    for key, value, told in (
        ("hold_out", 0.2, words),
        ("class_list", "names.txt", r"config\.data\.class_list=names\.txt"),
    ):
        with pytest.raises(ValueError, match=told):
            source.load(coco_files.recipe(path, **{key: value}), "train", READS)
    for key, value in (("scale", (2.0, 1.0)), ("flip", 1.5)):
        config = coco_files.recipe(path, **{f"augment.{key}": value})
        with pytest.raises(ValueError, match=rf"config\.augment\.{key}="):
            source.load(config, "train", READS)
    config = coco_files.recipe(path, classes=4)
    with pytest.raises(ValueError, match=r"has 3 classes .*data\.classes=3"):
        source.load(config, "train", READS)


def test_without_the_extra(monkeypatch, tmp_path):
    path = coco_files.write(tmp_path)
    coco_json._read.cache_clear()
    for name, words in (
        ("pycocotools.mask", "take pycocotools"),
        ("shapely", "shapely"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ValueError, match=rf"{words}.*g2sd_jax\[detection\]"):
                dataset = source.load(coco_files.recipe(path), "train", READS)
                dataset.fetch(np.arange(1), 0)


def test_matching_needs_whole_names():
    """x/12.jpg is not 2.jpg."""
    listing = coco.walk.Listing({"a/12.jpg": "", "a/2.jpg": ""})
    assert coco.match_names(["2.jpg"], listing, "a folder") == ["a/2.jpg"]
