# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sources, their checks, and the order of batches."""

import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from g2sd_jax import label_values
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import decoder, order, source
from g2sd_jax.data.memory import fake, pictures


def recipe(image_size=(8, 8), channels=3, **data):
    defaults = dict(
        source="arrays",
        path="",
        train_split="train",
        eval_split="val",
        train_examples=0,
        classes=2,
        limit=None,
        class_list="",
        hold_out=0.0,
    )
    model = dict(image_size=image_size, channels=channels)
    return ConfigDict(dict(model=model, data={**defaults, **data}))


def painted(value, size=(8, 8), mode="RGB"):
    """The bytes of a PNG of one colour; size is (height, width)."""
    file = io.BytesIO()
    Image.new(mode, size[::-1], value).save(file, "PNG")
    return file.getvalue()


def files(value_of, per_class=3, size=(8, 8), split="train"):
    return {
        f"{split}/{name}/{i}.png": painted((value_of(label, i), 0, 0), size)
        for label, name in enumerate(("ant", "bee"))
        for i in range(per_class)
    }


def write_folder(root, contents):
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_tar(path, contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def counting(count):
    """A data set whose pictures are their own index."""

    def fetch(indices, epoch=None):
        return {"image": indices.astype(np.int32)}

    return datasets.Dataset(count, (), fetch, lambda index: {"id": index})


def test_data_imports_no_framework():
    names = "source, order, dataset"
    code = f"import sys; from g2sd_jax.data import {names}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "tensorflow"} & set(run.stdout.split())


# Order.


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    first = order.epoch_order(3, 0, 50).copy()
    assert sorted(first) == list(range(50))
    order.epoch_order.cache_clear()
    np.testing.assert_array_equal(first, order.epoch_order(3, 0, 50))
    for other in (order.epoch_order(3, 1, 50), order.epoch_order(4, 0, 50)):
        assert (first != other).any()


def test_train_batches_visit_an_epoch_once_and_drop_the_rest():
    batches = order.train_batches(counting(10), 4, seed=0)
    epochs = [[next(batches) for _ in range(2)] for _ in range(3)]
    seen = [np.concatenate([b["index"] for b in epoch]) for epoch in epochs]
    for epoch in seen:
        assert len(set(epoch)) == 8
    assert (seen[0] != seen[1]).any()
    batch = epochs[0][0]
    np.testing.assert_array_equal(batch["image"], batch["index"])
    assert batch["index"].dtype == np.int32 and batch["valid"].all()


def test_train_batches_start_anywhere():
    from_zero = order.train_batches(counting(10), 4, seed=1)
    expected = [next(from_zero)["index"] for _ in range(7)][5:]
    started = order.train_batches(counting(10), 4, seed=1, start_step=5)
    np.testing.assert_array_equal(expected, [next(started)["index"] for _ in range(2)])


def test_train_order_does_not_depend_on_process_count():
    whole = order.train_batches(counting(20), 6, seed=1, start_step=2)
    parts = [order.train_batches(counting(20), 6, 1, 2, p, 3) for p in range(3)]
    for _ in range(4):
        joined = np.concatenate([next(part)["index"] for part in parts])
        np.testing.assert_array_equal(next(whole)["index"], joined)


def test_batches_that_cannot_be_are_refused_at_once():
    with pytest.raises(ValueError, match=r"config.batch=6 .* 4 processes"):
        order.train_batches(counting(20), 6, 0, 0, 0, 4)
    with pytest.raises(ValueError, match=r"config.batch=6 but only 5 training exampl"):
        order.train_batches(counting(5), 6, 0)


@pytest.mark.parametrize("count", [1, 8, 9, 13, 16])
def test_eval_batches_see_every_example_once(count):
    parts = [list(order.eval_batches(counting(count), 8, p, 4)) for p in range(4)]
    assert len({len(part) for part in parts}) == 1
    seen = []
    for batch, examples in (pair for part in parts for pair in part):
        assert batch["index"].shape == batch["valid"].shape == (2,)
        real = batch["index"][batch["valid"]]
        assert [example["id"] for example in examples] == real.tolist()
        assert (batch["index"][~batch["valid"]] % 8 == 0).all()  # The batch's first.
        seen.extend(real)
    assert sorted(seen) == list(range(count))


# Sources.


def test_digits_are_split_by_thirds_and_stratified():
    config = recipe((16, 12), 1, source="digits", classes=10, train_examples=1198)
    train, held_out = (source.load(config, split) for split in ("train", "val"))
    assert (train.count, held_out.count) == (1198, 599)
    assert train.classes == tuple("0123456789")
    labels = held_out.fetch(np.arange(599))["label"]
    assert np.ptp(np.bincount(labels)) <= 4
    image = train.fetch(np.arange(50))["image"]
    assert image.shape == (50, 16, 12, 1) and image.dtype == np.uint8
    assert image.max() == 255 and image.min() == 0
    config.model.channels = 3
    coloured = source.load(config, "train").fetch(np.arange(50))["image"]
    np.testing.assert_array_equal(coloured, np.repeat(image, 3, axis=-1))


def test_folder_and_tar_agree_and_go_round_the_classes(tmp_path):
    contents = files(lambda label, i: 100 * label + i)
    contents["train/ant/._0.png"] = b"what macOS leaves behind"
    contents["train/ant/notes.txt"] = b"not a picture"
    contents["ATTRIBUTION.tsv"] = b""
    write_folder(tmp_path / "set", contents)
    write_tar(tmp_path / "set_train.tar.gz", contents)
    for path in ("set", "set_{split}.tar.gz"):
        config = recipe(path=str(tmp_path / path), train_examples=6)
        dataset = source.load(config, "train")
        assert dataset.classes == ("ant", "bee")
        batch = dataset.fetch(np.arange(6))
        np.testing.assert_array_equal(batch["label"], [0, 1, 0, 1, 0, 1])
        reds = batch["image"][:, 4, 4, 0]
        np.testing.assert_array_equal(reds, [0, 100, 1, 101, 2, 102])
        assert dataset.original(3)["label"] == 1
        config.update({"data": dict(limit=4, train_examples=4)})
        assert source.load(config, "train").count == 4


@pytest.mark.parametrize(
    ("sizes", "canvas"),
    [
        ([(10, 12), (10, 12)], (10, 12)),  # One size, large enough: kept.
        ([(6, 12), (6, 12)], (8, 8)),  # One size, too small.
        ([(10, 12), (12, 10)], (8, 8)),
    ],
)
def test_canvas(tmp_path, sizes, canvas):
    contents = {f"train/a/{i}.png": painted(9, s, "L") for i, s in enumerate(sizes)}
    write_folder(tmp_path, contents)
    config = recipe(path=str(tmp_path), train_examples=2, classes=1)
    image = source.load(config, "train").fetch(np.arange(2))["image"]
    assert image.shape == (2, *canvas, 3)
    assert (image == 9).all()


def test_fit_crops_the_centre():
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = np.arange(8)
    fitted = pictures.fit(wide[..., None], (8, 8))
    np.testing.assert_array_equal(fitted[..., 0], wide[:, 8:16])
    for side in (28, 29):  # 29 rounds to a box a hair outside the picture.
        for size in ((side, side + 9), (side + 9, side)):
            picture = np.zeros((*size, 3), np.uint8)
            assert pictures.fit(picture, (7, 7)).shape == (7, 7, 3)


def test_orientation_and_modes(tmp_path):
    turned, tag = Image.new("RGB", (16, 8), (200, 0, 0)), Image.Exif()
    turned.paste((0, 0, 200), (8, 0, 16, 8))
    tag[decoder.ORIENTATION] = 6  # To be turned clockwise: left becomes top.
    (tmp_path / "train" / "a").mkdir(parents=True)
    turned.save(tmp_path / "train" / "a" / "0.jpg", exif=tag, quality=95)
    config = recipe(path=str(tmp_path), train_examples=1, classes=1)
    image = source.load(config, "train").original(0)["image"]
    assert image.shape == (16, 8, 3)
    assert image[2, 4, 0] > 150 and image[13, 4, 2] > 150

    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert np.asarray(decoder.to_mode(deep, "L"))[0, 0] == 40_000 >> 8
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        image = Image.new(mode, (8, 8))
        assert decoder.to_mode(image, "RGB").mode == "RGB"
    image = Image.new("P", (8, 8))
    image.info["transparency"] = b"\x00"
    assert decoder.to_mode(image, "RGB").mode == "RGB"


def test_npz(tmp_path):
    image = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    label, path = np.array([0, 1, 1, 0]), tmp_path / "set.npz"
    split = dict(val_image=image[:1], val_label=label[:1], classes=["ant", "bee"])
    np.savez(path, train_image=image, train_label=label, **split)
    config = recipe((8, 8), 1, path=str(path), train_examples=4)
    train, held_out = (source.load(config, split) for split in ("train", "val"))
    np.testing.assert_array_equal(
        train.fetch(np.array([3, 1]))["image"], image[[3, 1], ..., None]
    )
    assert (train.classes, held_out.count) == (("ant", "bee"), 1)
    config.model.image_size = (12, 12)
    assert source.load(config, "train").original(0)["image"].shape == (12, 12, 1)

    np.savez(path, image=image)  # Without labels, without splits.
    config.data.classes = 0
    assert set(source.load(config, "train").original(0)) == {"image"}
    with pytest.raises(ValueError, match=r"no split 'val'.*val_image"):
        source.load(config, "val")


def test_resizing_an_array_equals_resizing_its_pictures(rng):
    image = rng.integers(256, size=(2, 6, 9, 3), dtype=np.uint8)
    fitted = pictures.fit_to_canvas(image, (8, 8))
    for given, got in zip(image, fitted, strict=True):
        np.testing.assert_array_equal(got, pictures.fit(given, (8, 8)))


GOOD = dict(image=np.zeros((3, 8, 8, 3), np.uint8), label=np.arange(3) % 2)


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({}, dict(train_examples=4), r"train_examples=4, but .*train_examples=3"),
        (
            dict(label=np.array([0, 2, -1])),
            {},
            r"2 of 3 labels .*0..1.*example 1 has 2",
        ),
        (dict(label=np.zeros(2, int)), {}, r"label is int64 \[2\]; 3 pictures"),
        (dict(label=np.zeros(3)), {}, r"label is float64"),
        (dict(label=np.array([{}])), {}, r"cannot be read as an .npz of plain arrays"),
        (dict(image=np.zeros((3, 8, 8, 3))), {}, r"image is float64 .* uint8"),
        (dict(image=np.zeros((3, 8), np.uint8)), {}, r"image is uint8 \[3, 8\]"),
        (dict(image=GOOD["image"][..., :1]), {}, r"1 channels, .*model.channels=1"),
        (dict(image=np.zeros((3, 3, 8, 8), np.uint8)), {}, r"like \[N, C, H, W\]"),
        (dict(image=np.zeros((3, 1, 8, 8), np.uint8)), {}, r"like \[N, C, H, W\]"),
        (dict(image=GOOD["image"][:0], label=np.arange(0)), {}, r"no examples"),
        (dict(classes=["a", "b", "c"]), {}, r"3 classes \(a, b, c\).*classes=3"),
        ({}, dict(limit=0), r"no examples .*limit=0"),
        ({}, dict(source="array"), r"config.data.source='array'.*mean arrays\?"),
        ({}, dict(path=""), r"config.data.path=''.* accepted: an .npz"),
    ],
)
def test_refusals_name_the_key(tmp_path, change, data, message):
    path = tmp_path / "set.npz"
    np.savez(path, **{**GOOD, **change})
    config = recipe(**{**dict(path=str(path), train_examples=3), **data})
    with pytest.raises(ValueError, match=message):
        source.load(config, "train")


def test_size_is_free_where_a_split_is_only_judged(tmp_path):
    np.savez(tmp_path / "set.npz", **GOOD)
    config = recipe(path=str(tmp_path / "set.npz"), train_examples=4)
    assert source.load(config, "train", evaluate=True).count == 3


def test_missing_labels_and_broken_files_are_named(tmp_path):
    np.savez(tmp_path / "bare.npz", image=GOOD["image"])
    write_folder(tmp_path, {"train/a/0.png": painted(0), "train/a/1.png": b"no"})
    write_folder(tmp_path / "cut", {"train/a/0.png": painted(0, (64, 64))[:-20]})
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    (tmp_path / "bad.npz").write_bytes(b"no npz")
    (tmp_path / "set.csv").write_bytes(b"")
    for name, split, message in (
        ("bare.npz", "train", r"bare.npz has no labels.*config.data.classes=0"),
        ("", "train", r"a/1.png cannot be decoded"),
        ("cut", "train", r"a/0.png cannot be decoded"),
        ("", "test", r"no pictures test/CLASS.*its folders are: cut, train"),
        ("bad.tar", "train", r"bad.tar cannot be read"),
        ("bad.npz", "train", r"bad.npz cannot be read"),
        ("set.csv", "train", r"config.data.path=.*set.csv.* is not an .npz"),
    ):
        config = recipe(path=str(tmp_path / name), classes=1)
        with pytest.raises(ValueError, match=message):
            source.load(config, split)
    config = recipe(path=str(tmp_path), classes=1, channels=4)
    with pytest.raises(ValueError, match=r"config.model.channels=4"):
        source.load(config, "train")


# Fake examples.


def test_fake_examples_depend_on_their_index_alone():
    config = recipe((8, 12), source="fake", classes=5, train_examples=12)
    train, held_out = (source.load(config, split) for split in ("train", "val"))
    batch = train.fetch(np.array([7, 2]))
    assert batch["image"].shape == (2, 8, 12, 3) and batch["label"].shape == (2,)
    np.testing.assert_array_equal(batch["image"][1], train.original(2)["image"])
    assert (batch["image"] != held_out.fetch(np.array([7, 2]))["image"]).any()
    labels = train.fetch(np.arange(12))["label"]
    assert labels.min() >= 0 and labels.max() < 5 and len(set(labels)) > 1


def test_fake_labels_can_be_learned():
    dataset = fake.dataset(300, (16, 16), 3, classes=4)
    batch = dataset.fetch(np.arange(300))
    seen = batch["image"].reshape(300, -1, 3).mean(1)
    means = np.stack([seen[:200][batch["label"][:200] == c].mean(0) for c in range(4)])
    guess = np.linalg.norm(seen[200:, None] - means, axis=-1).argmin(1)
    assert (guess == batch["label"][200:]).mean() > 0.9


def test_fake_segmentation():
    dataset = fake.dataset(20, (32, 24), 3, classes=6, reads=("label_map",))
    batch = dataset.fetch(np.arange(20))
    assert batch["label_map"].shape == (20, 32, 24)
    assert batch["label_map"].dtype == batch["image"].dtype == np.uint8
    labels = set(np.unique(batch["label_map"]))
    assert labels == {*range(6), label_values.IGNORED}
    assert len({dataset.original(i)["label_map"].shape for i in range(20)}) > 10


def test_fake_keys_come_from_a_table(monkeypatch):
    calls = []

    def level(rng, size, channels, classes):
        calls.append(size)
        image = np.zeros((*size, channels), np.uint8)
        return {"image": image, "level": 7}, {"image": image, "level": 8}

    with pytest.raises(KeyError):
        fake.dataset(3, (8, 8), 3, 4, reads=("level",)).fetch(np.arange(3))
    monkeypatch.setitem(fake.MAKERS, "level", level)
    dataset = fake.dataset(3, (8, 8), 3, 4, reads=("label", "level", "label"))
    batch = dataset.fetch(np.arange(3))
    assert batch["level"].tolist() == [7] * 3 and dataset.original(0)["level"] == 8
    # Each maker is asked once an example; the first one's picture is the example's.
    assert len(calls) == 4 and batch["image"].any()
    alone = fake.dataset(3, (8, 8), 3, 4).fetch(np.arange(3))
    np.testing.assert_array_equal(batch["image"], alone["image"])
    assert set(alone) == {"image", "label"}


def test_a_source_without_what_is_read_is_refused(monkeypatch):
    config = recipe((8, 12), source="digits", classes=5, train_examples=12)
    config.stage = "finetune"
    words = (
        r"config\.data\.source='digits' gives label with each picture, but "
        r"config\.stage=\w+.* reads boxes; use config\.data\.source=fake\."
    )
    with pytest.raises(ValueError, match=words):
        source.load(config, "train", ("label", "boxes"))
    with pytest.raises(ValueError, match="reads smell; use a source that gives it"):
        source.load(config, "train", ("smell",))
    sources = dict(
        source.SOURCES, digits=source.Source("g2sd_jax.data.memory.fake", ("smell",))
    )
    monkeypatch.setattr(source, "SOURCES", sources)
    source.check_reads(config, ("smell",))


def test_fake_detection():
    layout = dict(max_boxes=3, mask_size=14)
    reads = ("boxes", "masks")
    dataset = fake.dataset(60, (32, 48), 3, 4, reads, layout=layout)
    batch = dataset.fetch(np.arange(60))
    assert {"image", *fake.OF_OBJECTS} == set(batch)
    assert batch["boxes"].shape == (60, 3, 4)
    assert batch["masks"].shape == (60, 3, 14, 14)
    assert batch["boxes"].dtype == batch["frames"].dtype == np.float32
    real = batch["valid_boxes"]
    assert set(real.sum(1)) == {0, 1, 2, 3}
    assert not batch["boxes"][~real].any() and not batch["masks"][~real].any()
    assert (batch["frames"][~real] == [0, 0, 1, 1]).all()
    np.testing.assert_array_equal(batch["frames"][real], batch["boxes"][real])
    x1, y1, x2, y2 = np.moveaxis(batch["boxes"][real], -1, 0)
    height, width = np.repeat(batch["size"], real.sum(1), axis=0).T
    assert (x2 > x1).all() and (y2 > y1).all()
    assert (x2 <= width + 1).all() and (y2 <= height + 1).all()
    crowds = 0
    for index in range(60):
        original = dataset.original(index)
        # What evaluators ignore is not trained on.
        objects = ~original["crowd"]
        assert objects.sum() == real[index].sum()
        wanted = original["labels"][objects]
        np.testing.assert_array_equal(batch["labels"][index][real[index]], wanted)
        crowds += original["crowd"].sum()
        for box, mask in zip(original["boxes"], original["masks"], strict=True):
            rows, columns = np.nonzero(mask)
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(edges, box, atol=2)
    assert crowds
    ids = [dataset.original(index)["image_id"] for index in range(60)]
    assert len(set(ids)) == 60
