# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures with label maps: found, decoded, cropped, and refused by name."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import files
import label_map_files
import test_configs
from g2sd_jax import recipes
from g2sd_jax.data import crops, decoder, failures, folder, geometry, order, source
from g2sd_jax.data.maps import pairs
from g2sd_jax.data.maps import source as maps
from g2sd_jax.tasks import segmentation

JUDGED = {"eval_split": "training", "inference.fit": (48, 192)}
JUDGED |= {"inference.stride": (21, 21)}


def test_ade20k_folder_and_tar(tmp_path):
    held = {
        f"ADEChallengeData2016/{name}": data
        for name, data in label_map_files.pairs().items()
    }
    files.write(tmp_path, held)
    tar = files.pack(tmp_path / "ade.tar", held)
    for path in (tmp_path / "ADEChallengeData2016", tar):
        dataset = source.load(label_map_files.recipe(path), "training")
        assert (dataset.count, dataset.classes) == (5, ())
        for i in range(5):
            own = dataset.original(i)
            stored = label_map_files.labels(
                i, (label_map_files.SIZE[0] + 4 * i, label_map_files.SIZE[1])
            )
            wanted = np.where(stored == 0, 255, stored - 1)  # Reduced.
            np.testing.assert_array_equal(own["label_map"], wanted)
            assert own["label_map"].dtype == np.uint8
            assert own["image"].shape == (*stored.shape, 3)


def test_training_crops_are_those_of_the_whole_resized_picture(tmp_path):
    config = label_map_files.recipe(
        files.write(tmp_path, label_map_files.pairs()), **{"augment.scale": (0.4, 1.5)}
    )
    dataset = source.load(config, "training")
    indices, padded = np.array([3, 0, 4, 1]), 0
    for epoch in range(4):
        batch = dataset.fetch(indices, epoch)
        assert batch["image"].shape == (4, 32, 32, 3)
        assert batch["image"].dtype == batch["label_map"].dtype == np.uint8
        for row, index in enumerate(indices):
            own, drawn = (
                dataset.original(index),
                crops.draw_scaled_crop(config, epoch, index),
            )
            height, width = batch["image_size"][row]
            size = own["label_map"].shape
            size = geometry.fit_size(size, geometry.scaled_box((48, 192), drawn.ratio))
            assert (height, width) == tuple(np.minimum(size, 32))
            image = geometry.resize_image(own["image"], size)
            label_map = geometry.resize_labels(own["label_map"], size)
            places = (drawn.places * (crops.offset_limits(size, (32, 32)) + 1)).astype(
                int
            )
            y, x = places[crops.first_varied_crop(label_map, (32, 32), places, 0.75)]
            inside = (slice(y, y + 32), slice(x, x + 32))
            got = {key: batch[key][row] for key in ("image", "label_map")}
            np.testing.assert_array_equal(got["image"][:height, :width], image[inside])
            np.testing.assert_array_equal(
                got["label_map"][:height, :width], label_map[inside]
            )
            outside = np.ones((32, 32), bool)
            outside[:height, :width] = False
            assert (got["image"][outside] == 0).all()
            assert (got["label_map"][outside] == 255).all()
            padded += outside.any()
    assert padded


def test_invented_batches_are_laid_out_as_real_ones(tmp_path):
    config = label_map_files.recipe(files.write(tmp_path, label_map_files.pairs()))
    real = source.load(config, "training").fetch(np.arange(2), 0)
    invented = source.invented(config, 2, ("label_map",))
    for name, held in invented.items():
        assert (held.shape, held.dtype) == (real[name].shape, real[name].dtype), name
    assert {*real} == {*invented, "index", "valid"}


def test_draws_depend_on_seed_epoch_and_example_alone(tmp_path):
    path = files.write(tmp_path, label_map_files.pairs())
    dataset = source.load(label_map_files.recipe(path), "training")
    one = dataset.fetch(np.array([2, 1]), 3)
    again = dataset.fetch(np.array([1]), 3)
    for name in ("image", "label_map", "image_size"):
        np.testing.assert_array_equal(one[name][1:], again[name])
    config = label_map_files.recipe(path)
    config.seed = 1
    other = source.load(config, "training").fetch(np.array([1]), 3)
    assert (other["image"] != again["image"]).any()
    assert (dataset.fetch(np.array([1]), 4)["image"] != again["image"]).any()
    looked = [dataset.fetch(np.array([1]))["image"] for _ in range(2)]
    np.testing.assert_array_equal(*looked)


def test_crops_share_no_draws_with_other_crops():
    config = label_map_files.recipe("")
    drawn = crops.draw_scaled_crop(config, 1, 2)
    others = crops.uniforms(config.seed, 1, 2, 23)
    assert not np.isclose(drawn.places.ravel(), others[1:]).any()


def test_varied_crops():
    label_map = np.zeros((4, 8), np.uint8)
    label_map[:, 4:6], label_map[:, 6:] = 1, 255
    offsets = np.array([[0, 0], [0, 4], [0, 2], [0, 1]])
    # One class; one class and what is ignored; half and half.
    assert crops.first_varied_crop(label_map, (4, 4), offsets, 0.75) == 2
    assert (
        crops.first_varied_crop(label_map, (4, 4), offsets, 0.5) == 3
    )  # The last, unchecked.
    assert crops.first_varied_crop(label_map, (4, 4), offsets, 1.0) == 0
    ignored = np.full((4, 8), 255, np.uint8)
    assert crops.first_varied_crop(ignored, (4, 4), offsets, 0.75) == 3


def as_palette(array):
    image = Image.fromarray(array)
    image.putpalette([i * 7 % 256 for i in range(768)])
    return image


def test_decoded_label_maps():
    stored = label_map_files.labels()
    for image, how in [
        (stored, {}),
        (as_palette(stored), {}),
        (as_palette(stored), dict(bits=4)),
        (stored.astype(np.uint16), {}),
    ]:
        got = maps.decode(files.encode(image, "PNG", **how), "a.png")
        np.testing.assert_array_equal(got, stored)
        assert got.dtype == np.uint8
    got = maps.decode(files.encode(Image.fromarray(stored > 1), "PNG"), "a.png")
    np.testing.assert_array_equal(got, stored > 1)


def test_grey_levels_of_four_bits_are_labels():
    data = label_map_files.four_bits(np.array([[1, 2, 3, 15]], np.uint8))
    assert maps.decode(data, "a.png").tolist() == [[1, 2, 3, 15]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            files.encode(files.pixels(label_map_files.SIZE), "PNG"),
            "ADE_0.png is stored as RGB, as col",
        ),
        (
            files.encode(files.pixels(label_map_files.SIZE)),
            "ADE_0.png is a JPEG, which changes labels",
        ),
        (
            files.encode(label_map_files.labels().astype(np.uint16) + 300, "PNG"),
            "holds the label 304",
        ),
        (
            files.encode(label_map_files.labels(size=(48, 61)), "PNG"),
            r"\(48, 60\).*\(48, 61\)",
        ),
        (
            files.encode(label_map_files.labels() + 3, "PNG"),
            "ADE_0.png holds the label 7, but.*=4 ",
        ),
    ],
    ids=["colours", "jpeg", "16 bits", "size", "label"],
)
def test_wrong_maps_are_refused_by_name(tmp_path, data, words):
    held = label_map_files.pairs(splits=("training",)) | {
        "annotations/training/ADE_0.png": data
    }
    with pytest.raises(ValueError, match=words):
        source.load(label_map_files.recipe(files.write(tmp_path, held)), "training")


def test_a_wrong_label_that_comes_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "CHECKED", 2)
    held = label_map_files.pairs(splits=("training",))
    held["annotations/training/ADE_2.png"] = files.encode(
        label_map_files.labels() + 3, "PNG"
    )
    held["images/training/ADE_2.jpg"] = files.encode(files.pixels(label_map_files.SIZE))
    dataset = source.load(
        label_map_files.recipe(files.write(tmp_path, held)), "training"
    )
    for read in (lambda: dataset.original(2), lambda: dataset.fetch(np.arange(5), 0)):
        with pytest.raises(ValueError, match=r"ADE_2\.png holds the label 7"):
            read()


def test_missing_partners_are_listed(tmp_path):
    held = label_map_files.pairs(splits=("training",))
    del held["annotations/training/ADE_1.png"]
    held["annotations/training/ADE_9.png"] = b""
    path = files.write(tmp_path, held)
    words = (
        r"1 pictures \(images/training/ADE_1.jpg\) without a label map, "
        r"1 label maps \(annotations/training/ADE_9.png\) without a picture"
    )
    with pytest.raises(ValueError, match=words):
        source.load(label_map_files.recipe(path), "training")
    with pytest.raises(ValueError, match=r"no files images/test/\*.*annotations, imag"):
        source.load(label_map_files.recipe(path), "test")
    (path / "images/training/ADE_0.PNG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"are both 'ADE_0' of config\.data\.images"):
        source.load(label_map_files.recipe(path), "training")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(images="images/{split}"), "config.data.images='images/{split}' needs ex"),
        (
            dict(labels="*/{split}/*"),
            r"config.data.labels='\*/{split}/\*' needs exactl",
        ),
        (dict(hold_out=0.1), r"config\.data\.images=.* has {split} in it"),
        (dict(source="folder"), "'folder' gives label with .* reads label_map; use"),
        (dict(source="tfds:scene_parse150"), "pictures of 3 channels.*source=maps"),
        (dict(classes=3), "holds the label 4, but config.data.classes=3 "),
        (dict(reduce_zero_label=False), "holds the label 4, but config.data.classes=4"),
    ],
)
def test_keys_are_refused(tmp_path, keys, words):
    config = label_map_files.recipe(
        files.write(tmp_path, label_map_files.pairs()), **keys
    )
    with pytest.raises(ValueError, match=words):
        source.load(config, "training", ("label_map",))


def test_a_share_is_held_out_where_there_are_no_splits(tmp_path):
    """The very pictures that the stages without labels leave out."""
    pairs_of = label_map_files.pairs(splits=("a", "b"))
    contents = {
        n.replace("a/", "a_").replace("b/", "b_"): d for n, d in pairs_of.items()
    }
    path = files.write(tmp_path, contents)
    keys = dict(images="images/*", labels="annotations/*", hold_out=0.2)
    config = label_map_files.recipe(path, **keys, train_examples=8)
    alone = files.recipe(path / "images", hold_out=0.2, classes=0)
    for split, count in (("training", 8), ("validation", 2)):
        both = pairs.list_pairs(config, split)
        names = [[each.name(i) for i in range(each.count)] for each in both]
        assert len(names[0]) == count
        for image, label_map in zip(*names, strict=True):
            stem = image.replace("/images/", "/annotations/").removesuffix(".jpg")
            assert label_map == f"{stem}.png"
        files_alone = folder.list_files(
            alone, {"training": "train", "validation": "val"}[split]
        )
        unlabelled = {files_alone.name(i) for i in range(files_alone.count)}
        assert unlabelled == set(names[0])
    assert source.load(config, "training").count == 8
    assert source.count(config) == (8, 4)


def test_other_tasks_have_no_use_for_maps(tmp_path):
    config = files.recipe(files.write(tmp_path, label_map_files.pairs()), source="maps")
    with pytest.raises(ValueError, match="'maps' gives label_map, image_size with"):
        source.load(config, "training", ("label",))
    words = r"has no config\.data\.images, .*source=maps .*config\.data\.source=folder"
    with pytest.raises(ValueError, match=words):
        source.load(config, "training")


def test_camvid_layout(tmp_path):
    """A tar for each split, `trainannot`, an ignored last class, names."""
    for split in ("train", "val"):
        held = {}
        for i in range(4):
            jpeg = files.encode(files.pixels(label_map_files.SIZE, i))
            png = files.encode(label_map_files.labels(i), "PNG")
            held |= {f"{split}/{i}.jpg": jpeg, f"{split}annot/{i}_L.png": png}
        files.pack(tmp_path / f"camvid_{split}.tar", held)
    config = label_map_files.recipe(
        tmp_path / "camvid_{split}.tar",
        "finetune:task=segmentation,data=camvid",
        labels="{split}annot/*_L.png",
        classes=11,
        ignore=(4,),
        train_examples=4,
    )
    dataset = source.load(config, "train")
    assert dataset.classes[:2] == ("sky", "building") and len(dataset.classes) == 11
    wanted = np.where(label_map_files.labels(1) == 4, 255, label_map_files.labels(1))
    np.testing.assert_array_equal(dataset.original(1)["label_map"], wanted)
    assert source.load(config, "val", evaluate=True).count == 4


def test_camvid_recipes():
    assert recipes.load("specific_seg:data=camvid").teacher.model.image_size[0] == 352
    with pytest.raises(ValueError, match="data='camvit' is not known; known: ade20k"):
        recipes.load("specific_seg:data=camvit")
    with pytest.raises(ValueError, match="data='camvid' is one of task=segmentation"):
        recipes.load("finetune:data=camvid")


def test_deeper_folders_and_endings_of_both(tmp_path):
    held = {}
    for city in "ab":
        top = f"train/{city}/{city}_0"
        held[f"left/{top}_left.png"] = files.encode(
            files.pixels(label_map_files.SIZE), "PNG"
        )
        held[f"fine/{top}_ids.png"] = files.encode(label_map_files.labels(), "PNG")
        held[f"fine/{top}_color.png"] = files.encode(
            files.pixels(label_map_files.SIZE), "PNG"
        )
    patterns = dict(images="left/{split}/*_left.png", labels="fine/{split}/*_ids.png")
    config = label_map_files.recipe(
        files.write(tmp_path, held), **patterns, train_examples=2
    )
    assert source.load(config, "train").count == 2


def test_unreadable_pairs_are_listed_and_replaced(tmp_path):
    held = label_map_files.pairs(splits=("training",))
    held["annotations/training/ADE_1.png"] = b""
    held["images/training/ADE_2.jpg"] = b"\xff\xd8 and no more"
    path, run = files.write(tmp_path / "set", held), tmp_path / "run"
    run.mkdir()
    failures.list_in(run)
    try:
        dataset = source.load(
            label_map_files.recipe(path, max_bad_share=0.5), "training"
        )
        batch = dataset.fetch(np.arange(5), 0)
        assert batch["index"].tolist() == [0, 3, 3, 3, 4] and batch["valid"].all()
        config = label_map_files.recipe(path, max_bad_share=0.5, **JUDGED)
        judged = segmentation.window_batches(lambda: dataset, config)
        scenes = {id(scene): scene for _, held in judged() for scene, _ in held}
        assert len(scenes) == 3
        for _, examples in order.eval_batches(
            dataset._replace(fetch=lambda indices, epoch=None: {}), 5
        ):
            assert [bool(each) for each in examples] == [True, False, False, True, True]
        lines = (run / failures.FILE).read_text().splitlines()
        assert len(lines) == 2
        assert "ADE_1.png: the file is empty" in json.loads(lines[0])["reason"]
        with pytest.raises(ValueError, match=r"2 of 5 examples.*max_bad_share=0.02"):
            source.load(label_map_files.recipe(path), "training").fetch(np.arange(5), 0)
    finally:
        failures.list_in(None)


def test_a_map_of_nothing_but_ignored_pixels_is_legal(tmp_path):
    held = label_map_files.pairs(splits=("training",))
    nothing = np.zeros(label_map_files.SIZE, np.uint8)
    held["annotations/training/ADE_0.png"] = files.encode(nothing, "PNG")
    dataset = source.load(
        label_map_files.recipe(files.write(tmp_path, held)), "training"
    )
    assert (dataset.fetch(np.arange(1), 0)["label_map"] == 255).all()
    assert (dataset.original(0)["label_map"] == 255).all()


def test_grey_pictures(tmp_path):
    held = label_map_files.pairs(splits=("training",))
    grey = files.encode(Image.fromarray(files.pixels(label_map_files.SIZE)[..., 0]))
    held["images/training/ADE_0.jpg"] = grey
    path = files.write(tmp_path, held)
    image = source.load(label_map_files.recipe(path), "training").original(0)["image"]
    assert image.shape == (*label_map_files.SIZE, 3) and (image == image[..., :1]).all()
    config = label_map_files.recipe(path, **{"model.channels": 1})
    assert source.load(config, "training").fetch(np.arange(2), 0)["image"].shape == (
        *(2, 32, 32),
        1,
    )


def test_every_key_is_read(tmp_path, monkeypatch):
    config = label_map_files.recipe(files.write(tmp_path, label_map_files.pairs()))
    recorder = test_configs.Recorder(config, monkeypatch)
    source.load(config, "training").fetch(np.arange(2), 0)
    assert test_configs.MAPS - recorder.read == set()


def turned_pair(turn, stored):
    """A picture whose EXIF turns it, and a map over its stored or its shown pixels."""
    pixels, label_map = files.pixels(label_map_files.SIZE), label_map_files.labels()
    exif = Image.Exif()
    exif[decoder.ORIENTATION] = turn
    shown = decoder.to_upright(label_map, (0, 0, 1, 1), decoder.TURNS[turn])[0]
    over = label_map if stored else np.ascontiguousarray(shown)
    contents = {
        "images/training/x.jpg": files.encode(pixels, exif=exif),
        "annotations/training/x.png": files.encode(over, "PNG"),
    }
    return contents, np.where(shown == 0, 255, shown - 1)


@pytest.mark.parametrize("turn", sorted(decoder.TURNS))
@pytest.mark.parametrize("orientation", ["stored", "shown"])
def test_maps_follow_their_pictures(tmp_path, turn, orientation):
    contents, shown = turned_pair(turn, orientation == "stored")
    path = files.write(tmp_path, contents)
    config = label_map_files.recipe(path, train_examples=1, map_orientation=orientation)
    dataset = source.load(config, "training")
    np.testing.assert_array_equal(dataset.original(0)["label_map"], shown)
    [note] = dataset.notes
    assert "EXIF turns 1 of 1 pictures" in note and "x.jpg" in note
    assert ("WARNING" in note) == (orientation == "shown")


def test_a_map_across_its_picture_names_the_key(tmp_path):
    for stored, orientation, other in (
        (True, "shown", "stored"),
        (False, "stored", "shown"),
    ):
        path = files.write(tmp_path / other, turned_pair(6, stored)[0])
        config = label_map_files.recipe(path, map_orientation=orientation)
        with pytest.raises(ValueError, match=f"EXIF .*map_orientation={other}"):
            source.load(config, "training")
    config = label_map_files.recipe(path, map_orientation="upright")
    with pytest.raises(ValueError, match="map_orientation='upright' is not known"):
        source.load(config, "training")


def test_one_class_is_refused(tmp_path):
    path = files.write(tmp_path, label_map_files.pairs())
    with pytest.raises(ValueError, match=r"nothing to be told from.*classes=2"):
        source.load(label_map_files.recipe(path, classes=1), "training")


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_other_lossless_maps(kind):
    stored = label_map_files.labels()
    got = maps.decode(files.encode(as_palette(stored), kind), "a")
    np.testing.assert_array_equal(got, stored)


def test_notebook_copies_are_no_pairs(tmp_path):
    contents = label_map_files.pairs(splits=("training",))
    copies = {
        name.replace("training/", "training/.ipynb_checkpoints/"): data
        for name, data in contents.items()
        if "images" in name
    }
    path = files.write(tmp_path, contents | copies)
    assert source.load(label_map_files.recipe(path), "training").count == 5


def test_grey_stored_as_colours_says_so():
    stored = np.repeat(label_map_files.labels()[..., None], 3, -1)
    with pytest.raises(ValueError, match=r"all three are alike.*getchannel"):
        maps.decode(files.encode(stored, "PNG"), "a.png")


def test_class_names_have_no_byte_order_mark(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfbackground\r\nroad\r\n")
    config = label_map_files.recipe(
        tmp_path, classes=2, class_list=str(tmp_path / "names.txt")
    )
    assert maps.class_names(config) == ("background", "road")


@pytest.mark.parametrize(
    ("picture", "label_map", "hint"),
    [
        ("{}.jpg", "{}_mask.png", r"labels='annotations/\{split\}/\*_mask'$"),
        ("{}.jpg", "{}.mask.png", r"labels='annotations/\{split\}/\*\.mask\.png'$"),
        ("{}.jpg", "mask-{}.png", r"labels='annotations/\{split\}/mask-\*'$"),
        ("{}_left.jpg", "{}_ids.png", r"images='.*\*_left' and .*labels='.*\*_ids'$"),
        ("{}.jpg", "x{}.png", r"have to agree in what \* stands for$"),
    ],
)
def test_names_that_differ_suggest_patterns(tmp_path, picture, label_map, hint):
    contents = {
        f"{folder}/training/{name.format(f'0{i}')}": b""
        for i in range(12)
        for folder, name in (("images", picture), ("annotations", label_map))
    }
    config = label_map_files.recipe(files.write(tmp_path, contents))
    with pytest.raises(ValueError) as error:
        source.load(config, "training")
    assert re.search(hint, str(error.value).rstrip("."))
    advised = re.findall(r"config\.data\.(\w+)='([^']*)'", str(error.value))
    config.data.update(dict(advised))
    if advised:
        pictures, maps_of = pairs.list_pairs(config, "training")
        assert pictures.count == maps_of.count == 12
