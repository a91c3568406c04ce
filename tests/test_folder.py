# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Folders and tars of class folders: what is found, in which order, what is refused."""

import io
import tarfile

import numpy as np
import pytest

import files
from g2sd_jax.data import folder, source

NAMES = {f"{i}.png": str(i).encode() for i in range(10)}
SET = {
    f"train/{c}/{name}": c.encode() + data for c in "ab" for name, data in NAMES.items()
}
SET |= {f"val/{c}/{i}.png": b"v" for c in "ab" for i in range(2)}
SET |= {"train/a/._0.png": b"left by macOS", "train/b/notes.txt": b"", "README": b""}


def pack(path, contents, prefix="./", mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(data))
    return path


def told(held):
    return [
        (held.name(i), int(held.labels[i]), held.read(i)) for i in range(held.count)
    ]


def test_folder_and_tars_are_one_set(tmp_path):
    paths = [
        files.write(tmp_path / "set", SET),
        pack(tmp_path / "set.tar", SET),
        pack(tmp_path / "deep.tar", SET, "one/two/"),
        pack(tmp_path / "set.tar.gz", SET, mode="w:gz"),
        pack(tmp_path / "set.tgz", SET, mode="w:gz"),
    ]
    found = [told(folder.listed(files.recipe(path), "train")) for path in paths]
    assert [row[1:] for row in found[0]][:3] == [(0, b"a0"), (1, b"b0"), (0, b"a1")]
    for path, rows in zip(paths, found, strict=True):
        assert [row[1:] for row in rows] == [row[1:] for row in found[0]]
        assert len(rows) == 20
        mark = "/" if path.is_dir() else ":"
        assert rows[0][0] == f"{path}{mark}train/a/0.png"
    val = folder.listed(files.recipe(paths[1]), "val")
    assert (val.count, val.classes) == (4, ("a", "b"))


@pytest.mark.parametrize("make", [files.write, pack])
def test_pictures_without_class_folders(tmp_path, make):
    picture = lambda seed: files.encode(files.pixels(seed=seed))
    loose = {f"train/{i}.jpg": picture(i) for i in (1, 0)}
    loose |= {"train/deeper/2.jpg": picture(2), "val/3.jpg": picture(3)}
    loose |= {"trainannot/0.png": b"a map"}
    path = make(tmp_path / "set.tar", loose)
    config = files.recipe(path, classes=0)
    held = folder.listed(config, "train")
    assert [held.read(i) for i in range(3)] == [picture(i) for i in range(3)]
    assert held.name(2).endswith("train/deeper/2.jpg")
    for name in ("folder", "arrays"):
        config.data.source, config.data.train_examples = name, 3
        dataset = source.load(config, "train")
        assert (dataset.count, dataset.classes, dataset.labels) == (3, (), None)
        batch = dataset.fetch(np.arange(2), 0)
        assert "label" not in batch and batch["image"].shape[-1] == 3
    config.data.classes = 2
    with pytest.raises(ValueError, match=r"class folders need config\.data\.classes=0"):
        folder.listed(config, "val")


@pytest.mark.parametrize("make", [files.write, pack])
def test_a_share_is_held_out(tmp_path, make):
    bare = {name.removeprefix("train/"): data for name, data in SET.items()}
    path = make(tmp_path / "set.tar", {k: v for k, v in bare.items() if "val" not in k})
    config = files.recipe(path, hold_out=0.3)
    train, val = (told(folder.listed(config, split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (14, 6)
    assert sorted(row[2] for row in train + val) == sorted(
        f"{c}{i}".encode() for c in "ab" for i in range(10)
    )
    assert [row[1] for row in val] == [0, 1] * 3
    # Not the first by name, which may all be of one day.
    assert {row[2] for row in val} != {
        f"{c}{i}".encode() for c in "ab" for i in range(3)
    }
    # One more picture moves no other one to the other side, but at the border.
    make(path, {**{k: v for k, v in bare.items() if "val" not in k}, "a/x.png": b"x"})
    again = told(folder.listed(config, "val"))
    assert len({row[0] for row in again} & {row[0] for row in val}) >= 5


def without(*names):
    return {name: data for name, data in SET.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ("contents", "data", "split", "message"),
    [
        (
            SET,
            {},
            "test",
            r"no pictures test/CLASS/\*\{.jpg.*folders are: .*train.*val",
        ),
        (SET | {"train/c/": b""}, {}, "train", r"no pictures .* class folders c;"),
        (SET | {"train/A/0.png": b"x"}, {}, "train", r"spelling only: 'A', 'a'"),
        (without("val/b"), {}, "val", r"differ in their class folders.*has: b\."),
        (SET | {"val/c/0.png": b"x"}, {}, "val", r"'train' differ.*has: c\."),
        (
            SET,
            dict(hold_out=0.5),
            "train",
            r"hold_out=0.5, but .*train, val, which are",
        ),
        (SET, dict(hold_out=1.5), "train", r"hold_out=1.5 .*share between 0 and 1"),
        (SET, dict(hold_out=0.5), "test", r"one of the splits train and val"),
    ],
)
@pytest.mark.parametrize("make", [files.write, pack])
def test_refusals(tmp_path, make, contents, data, split, message):
    path = make(tmp_path / "set.tar", contents)
    with pytest.raises(ValueError, match=message):
        source.files(files.recipe(path, **data), split)


def test_a_class_list_numbers_a_part_of_the_classes(tmp_path):
    path = files.write(tmp_path / "set", without("val/a"))
    (tmp_path / "list.txt").write_text("a\nb\n")
    config = files.recipe(path, class_list=str(tmp_path / "list.txt"))
    assert source.files(config, "val").classes == ("b",)


def test_tars_that_cannot_be(tmp_path, monkeypatch):
    twice = SET | {"other/train/a/0.png": b"x"}
    path = pack(tmp_path / "twice.tar", twice)
    with pytest.raises(ValueError, match=r"in several places: other/train, train;"):
        folder.listed(files.recipe(path), "train")
    whole = pack(tmp_path / "whole.tar", {"train/a/0.png": bytes(5000)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    with pytest.raises(ValueError, match=r"cut.tar .* ends inside train/a/0.png"):
        folder.listed(files.recipe(tmp_path / "cut.tar"), "train")
    monkeypatch.setattr(folder, "PACKED", 10)
    path = pack(tmp_path / "set.tar.gz", SET, mode="w:gz")
    with pytest.raises(ValueError, match=r"GiB, compressed: .*gunzip it"):
        folder.listed(files.recipe(path), "train")
    with pytest.raises(
        ValueError, match=r"config.data.path=.*set.zip' is not a folder"
    ):
        (tmp_path / "set.zip").write_bytes(b"")
        folder.listed(files.recipe(tmp_path / "set.zip"), "train")


def test_labels_have_to_fit_the_recipe(tmp_path):
    path = files.write(tmp_path, files.photographs(2, splits=("train",), classes="abc"))
    config = files.recipe(path, train_examples=6, classes=2)
    with pytest.raises(ValueError, match=r"2 of 6 labels are outside 0..1"):
        source.load(config, "train")
    config.data.classes = 4
    with pytest.raises(ValueError, match=r"has 3 classes \(a, b, c\), but .*classes=4"):
        source.load(config, "train")
    config.data.classes = 0  # As pre-training may have it.
    np.testing.assert_array_equal(
        source.load(config, "train").fetch(np.arange(6), 0)["label"], [0, 1, 2] * 2
    )


def test_a_split_says_what_evaluation_crops(tmp_path):
    path = files.write(tmp_path, files.photographs(1, splits=("train",), classes="ab"))
    for given, share in ((None, 0.875), (0.9, 0.9)):
        config = files.recipe(path, train_examples=2, classes=2, eval_crop=given)
        assert source.load(config, "train").eval_crop == share
