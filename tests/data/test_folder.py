# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Folders and tars of class folders: what is found, in which order, what is refused."""

import tarfile

import numpy as np
import pytest

import files
from g2sd_jax.data import folder, source, tar

NAMES = {f"{i}.png": str(i).encode() for i in range(10)}
SET = {
    f"train/{c}/{name}": c.encode() + data for c in "ab" for name, data in NAMES.items()
}
SET |= {f"val/{c}/{i}.png": b"v" for c in "ab" for i in range(2)}
SET |= {"train/a/._0.png": b"left by macOS", "train/b/notes.txt": b"", "README": b""}


def told(held):
    return [
        (held.name(i), int(held.labels[i]), held.read(i)) for i in range(held.count)
    ]


def test_folder_and_tars_are_one_set(tmp_path):
    paths = [
        files.write(tmp_path / "set", SET),
        files.pack(tmp_path / "set.tar", SET),
        files.pack(tmp_path / "deep.tar", SET, "one/two/"),
        files.pack(tmp_path / "set.tar.gz", SET, mode="w:gz"),
        files.pack(tmp_path / "set.tgz", SET, mode="w:gz"),
    ]
    found = [told(folder.list_files(files.recipe(path), "train")) for path in paths]
    assert [row[1:] for row in found[0]][:3] == [(0, b"a0"), (1, b"b0"), (0, b"a1")]
    for path, rows in zip(paths, found, strict=True):
        assert [row[1:] for row in rows] == [row[1:] for row in found[0]]
        assert len(rows) == 20
        mark = "/" if path.is_dir() else ":"
        assert rows[0][0] == f"{path}{mark}train/a/0.png"
    val = folder.list_files(files.recipe(paths[1]), "val")
    assert (val.count, val.classes) == (4, ("a", "b"))


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_pictures_without_class_folders(tmp_path, make):
    picture = lambda seed: files.encode(files.pixels(seed=seed))
    loose = {f"train/{i}.jpg": picture(i) for i in (1, 0)}
    loose |= {"train/deeper/2.jpg": picture(2), "val/3.jpg": picture(3)}
    loose |= {"trainannot/0.png": b"a map"}
    path = make(tmp_path / "set.tar", loose)
    config = files.recipe(path, classes=0)
    held = folder.list_files(config, "train")
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
        folder.list_files(config, "val")


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_a_share_is_held_out(tmp_path, make):
    bare = {name.removeprefix("train/"): data for name, data in SET.items()}
    path = make(tmp_path / "set.tar", {k: v for k, v in bare.items() if "val" not in k})
    config = files.recipe(path, hold_out=0.3)
    train, val = (told(folder.list_files(config, split)) for split in ("train", "val"))
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
    again = told(folder.list_files(config, "val"))
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
        (SET, dict(hold_out=0.5), "test", r"one of the splits train and val"),
    ],
)
@pytest.mark.parametrize("make", [files.write, files.pack])
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
    path = files.pack(tmp_path / "twice.tar", twice)
    with pytest.raises(ValueError, match=r"in several places: other/train, train;"):
        folder.list_files(files.recipe(path), "train")
    whole = files.pack(
        tmp_path / "whole.tar", {"train/a/0.png": bytes(5000)}
    ).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    with pytest.raises(ValueError, match=r"cut.tar .* ends inside train/a/0.png"):
        folder.list_files(files.recipe(tmp_path / "cut.tar"), "train")
    monkeypatch.setattr(tar, "PACKED", 10)
    path = files.pack(tmp_path / "set.tar.gz", SET, mode="w:gz")
    with pytest.raises(ValueError, match=r"GiB, compressed: .*gunzip it"):
        folder.list_files(files.recipe(path), "train")
    with pytest.raises(
        ValueError, match=r"config.data.path=.*set.zip' is not a folder"
    ):
        (tmp_path / "set.zip").write_bytes(b"")
        folder.list_files(files.recipe(tmp_path / "set.zip"), "train")


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


HIDDEN = {f"{folder}/9.png": b"h" for folder in (".thumbnails", "@eaDir", "__MACOSX")}
HIDDEN |= {".Trash-1000/files/8.png": b"h", ".ipynb_checkpoints/0-checkpoint.png": b"h"}
HIDDEN |= {"Thumbs.db": b"", ".DS_Store": b"", "desktop.ini": b""}


@pytest.mark.parametrize("make", [files.write, files.pack])
@pytest.mark.parametrize("classes", [0, 2])
def test_hidden_folders_are_skipped(tmp_path, make, classes):
    inside = ("train/a", "train/b", "train") if classes else ("train", "train/day")
    contents = SET if classes else {f"train/{name}": b"" for name in NAMES}
    contents = contents | {
        f"{top}/{name}": data for top in inside for name, data in HIDDEN.items()
    }
    path = make(tmp_path / "set.tar", contents)
    listed = folder.list_files(files.recipe(path, classes=classes), "train")
    assert listed.count == (20 if classes else 10)
    assert not any("eaDir" in note or "Thumbs" in note for note in listed.notes)


def test_a_hidden_folder_around_everything_hides_nothing(tmp_path):
    paths = (
        files.write(tmp_path / ".cache", SET),
        files.pack(tmp_path / "set.tar", SET, ".cache/"),
    )
    for path in paths:
        assert folder.list_files(files.recipe(path), "train").count == 20


def test_links_are_followed_once(tmp_path):
    root = files.write(tmp_path / "set", {f"train/day/{n}": b"" for n in NAMES})
    files.write(tmp_path / "more", {"x.png": b"x", "deep/y.png": b"y"})
    (root / "train/day/all").symlink_to(root / "train")
    (root / "train/above").symlink_to(tmp_path)
    (root / "train/again").symlink_to(root / "train/day")
    (root / "train/first.png").symlink_to(root / "train/day/0.png")
    (root / "train/nowhere.png").symlink_to(root / "gone.png")
    (root / "train/more").symlink_to(tmp_path / "more")
    (tmp_path / "z.png").write_bytes(b"z")
    (root / "train/outside.png").symlink_to(tmp_path / "z.png")
    listed = folder.list_files(files.recipe(root, classes=0), "train")
    names = [listed.name(i).rpartition("train/")[2] for i in range(listed.count)]
    assert names == sorted(
        [f"day/{n}" for n in NAMES] + ["more/x.png", "more/deep/y.png", "outside.png"]
    )
    [note] = listed.notes
    assert "passed over 5 links" in note and "above" in note


def test_a_class_folder_may_be_a_link(tmp_path):
    root = files.write(tmp_path / "set", without("train/b"))
    files.write(tmp_path / "elsewhere", {"0.png": b"b0", "deep/1.png": b"b1"})
    (root / "train/b").symlink_to(tmp_path / "elsewhere")
    (root / "train/everything").symlink_to(root / "train")
    listed = folder.list_files(files.recipe(root), "train")
    assert (listed.classes, listed.count) == (("a", "b"), 12)
    assert folder.list_files(files.recipe(root), "val").classes == ("a", "b")


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_deeper_pictures_are_of_the_first_folder(tmp_path, make):
    deeper = {f"train/b/2024/{i}.png": b"d" for i in range(3)}
    path = make(tmp_path / "set.tar", SET | deeper)
    listed = folder.list_files(files.recipe(path), "train")
    assert listed.classes == ("a", "b")
    assert np.bincount(listed.labels).tolist() == [10, 13]
    [note] = [note for note in listed.notes if "lie deeper" in note]
    assert "3 of 23" in note and "b/2024/0.png" in note
    # As Tiny ImageNet is unpacked.
    below = {name.replace("/a/", "/a/images/"): SET[name] for name in SET}
    path = make(tmp_path / "tiny.tar", below)
    assert folder.list_files(files.recipe(path), "train").count == 20


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_a_split_whose_classes_are_in_a_list_says_so(tmp_path, make):
    contents = without("val") | {"val/images/0.png": b"", "val/list.txt": b""}
    path = make(tmp_path / "set.tar", contents)
    with pytest.raises(ValueError, match=r"all lie in one folder, images.*move each"):
        folder.list_files(files.recipe(path), "val")


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_other_endings_are_read_or_counted(tmp_path, make):
    read = ("tif", "TIFF", "ppm", "pgm", "gif", "jfif", "avif")
    contents = SET | {f"train/a/x.{ending}": b"" for ending in read}
    contents |= {f"train/a/{i}.heic": b"" for i in range(3)} | {"train/b/y.JP2": b""}
    path = make(tmp_path / "set.tar", contents | {"train/b/0.xml": b""})
    config = files.recipe(path, train_examples=5)
    listed = folder.list_files(config, "train")
    assert listed.count == 27
    [note] = listed.notes
    assert "ending: 3 .heic, 1 .jp2 (read" in note
    with pytest.raises(ValueError, match=r"no pictures .* folders c; .*4 \.heic"):
        empty = contents | {"train/c/": b"", "train/c/0.heic": b""}
        path = make(tmp_path / "again.tar", empty)
        folder.list_files(files.recipe(path), "train")


def test_a_wrong_count_says_what_was_passed_over(tmp_path):
    contents = files.photographs(2, splits=("train",)) | {"train/a/0.heic": b""}
    config = files.recipe(files.write(tmp_path, contents), train_examples=9)
    with pytest.raises(ValueError, match=r"train_examples=4\. .*1 \.heic"):
        source.load(config, "train")


def test_a_wrong_count_of_a_held_out_share_says_why(tmp_path):
    contents = files.photographs(4, splits=("train",), classes="ab")
    contents = {name.removeprefix("train/"): data for name, data in contents.items()}
    path = files.write(tmp_path, contents)
    config = files.recipe(path, train_examples=8, hold_out=0.1, classes=2)
    with pytest.raises(ValueError, match=r"train_examples=6\. config\.data\.hold_out"):
        source.load(config, "train")


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_unlabelled_pictures_need_no_split(tmp_path, make):
    contents = {f"photos/{name}": data for name, data in NAMES.items()}
    contents |= {"photos/2024/x.png": b"x"}
    path = make(tmp_path / "set.tar", contents)
    path = path / "photos" if path.is_dir() else path
    listed = folder.list_files(files.recipe(path, classes=0), "train")
    assert listed.count == 11 and "all of its 11 pictures" in listed.notes[0]
    assert sorted(listed.read(i) for i in range(11)) == sorted(contents.values())
    with pytest.raises(ValueError, match=r"no folder 'val'.*config\.data\.hold_out"):
        folder.list_files(files.recipe(path, classes=0), "val")
    if path.is_dir():
        parted = files.recipe(path, classes=0, hold_out=0.3)
        train, val = (folder.list_files(parted, split) for split in ("train", "val"))
        assert (train.count, val.count) == (8, 3)
        assert not {train.name(i) for i in range(8)} & {val.name(i) for i in range(3)}
    with pytest.raises(ValueError, match=r"no pictures train/CLASS"):
        folder.list_files(files.recipe(path), "train")


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_every_class_is_on_both_sides(tmp_path, make):
    counts = dict(common=30, rare=4, pair=2, single=1)
    contents = {f"{name}/{i}.png": b"" for name in counts for i in range(counts[name])}
    path = make(tmp_path / "set.tar", contents)
    sides = []
    for split in ("train", "val"):
        listed = folder.list_files(files.recipe(path, hold_out=0.1), split)
        assert listed.classes == ("common", "pair", "rare", "single")
        sides.append(np.bincount(listed.labels, minlength=4).tolist())
    assert sides == [[27, 1, 3, 1], [3, 1, 1, 0]]
    listed = folder.list_files(files.recipe(path, hold_out=0.9), "train")
    assert np.bincount(listed.labels).tolist() == [3, 1, 1, 1]


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_control_characters_in_names_are_escaped(tmp_path, make):
    contents = {f"train/{c}/0\x1b[2J\n.png": c.encode() for c in ("a\x1b[31m", "b\r")}
    path = make(tmp_path / "set.tar", contents)
    listed = folder.list_files(files.recipe(path), "train")
    assert listed.classes == (r"a\x1b[31m", r"b\r")
    assert listed.name(0).endswith(r"train/a\x1b[31m/0\x1b[2J\n.png")
    assert listed.read(0) == b"a\x1b[31m"


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_names_that_are_no_utf8_are_escaped(tmp_path, make):
    """As an old zip leaves them: the byte of an accented letter in Latin-1."""
    contents = {"train/caf\udce9/bro\udcdfk.png": b"1", "train/dog/0.png": b"2"}
    listed = folder.list_files(
        files.recipe(make(tmp_path / "a.tar", contents)), "train"
    )
    assert listed.classes == ("caf\\udce9", "dog")
    assert sorted(listed.read(i) for i in range(2)) == [b"1", b"2"]
    assert all(listed.name(i).encode() for i in range(2))


def test_a_compressed_tar_is_bounded(tmp_path, monkeypatch):
    path = files.pack(
        tmp_path / "set.tar.gz", {"train/a/0.png": bytes(10**7)}, mode="w:gz"
    )
    assert folder.list_files(files.recipe(path), "train").count == 1
    (changed := tmp_path / "again.tgz").write_bytes(path.read_bytes())
    monkeypatch.setattr(tar, "UNPACKED", 10**6)
    with pytest.raises(ValueError, match=r"unpacks to more than .* GiB .*gunzip it"):
        folder.list_files(files.recipe(changed), "train")


def test_hard_links_in_a_tar_are_pictures(tmp_path):
    path = files.pack(tmp_path / "set.tar", SET)
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.LNKTYPE, "hard"), (tarfile.SYMTYPE, "soft")):
            member = tarfile.TarInfo(f"./train/b/{name}.png")
            member.type, member.linkname = kind, "./train/a/0.png"
            tar.addfile(member)
    listed = folder.list_files(files.recipe(path), "train")
    names = [listed.name(i) for i in range(listed.count)]
    [index] = [i for i, name in enumerate(names) if name.endswith("b/hard.png")]
    assert listed.read(index) == b"a0" and len(names) == 21
    assert "passed over 1 links" in listed.notes[0]


@pytest.mark.parametrize("make", [files.write, files.pack])
def test_a_single_class_stays_one_without_config_data_classes(tmp_path, make):
    path = make(tmp_path / "set.tar", {f"train/cat/{name}": b"" for name in NAMES})
    listed = folder.list_files(files.recipe(path, classes=0), "train")
    assert listed.classes == ("cat",) and not listed.labels.any()


def test_a_class_may_be_called_as_a_split(tmp_path):
    vehicles = {
        f"{s}/{c}/0.png": b"" for s in ("train", "val") for c in ("train", "car")
    }
    vehicles["val/train/deeper/1.png"] = b""
    for make in (files.write, files.pack):
        path = make(tmp_path / f"{make.__name__}.tar", vehicles)
        for split, count in (("train", 2), ("val", 3)):
            listed = folder.list_files(files.recipe(path), split)
            assert (listed.classes, listed.count) == (("car", "train"), count)
