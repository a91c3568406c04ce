# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFDS sets: found by name, read undecoded, at random or one after another."""

import io
import os
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from PIL import Image

import test_configs
from g2sd_jax import cli, feed, recipes
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order, source
from g2sd_jax.data.tfds import files as tfds_files
from g2sd_jax.data.tfds import source as tfds_source
from g2sd_jax.data.tfds import stream as tfds_stream
from g2sd_jax.data.tfds import tfrecord

with warnings.catch_warnings():  # Of the library's own making, at import.
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

COUNTS = {"train": 23, "validation": 7}
NAMES = ("ant", "bee", "cow")
FORMATS = ("tfrecord", "array_record")


class Insects(tfds.core.GeneratorBasedBuilder):
    """JPEGs whose red says which example they are, in three shards a split."""

    VERSION = tfds.core.Version("1.2.0")
    MORE = ()

    def _info(self):
        features = dict(
            file_name=tfds.features.Text(),
            image=tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            label=tfds.features.ClassLabel(names=NAMES),
            **{name: tfds.features.ClassLabel(num_classes=4) for name in self.MORE},
        )
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            image = np.full((20 + i, 30, 3), (10 * i, 100, 50), np.uint8)
            name = f"{split}/{i}.jpg"
            more = dict.fromkeys(self.MORE, 0)
            yield name, dict(file_name=name, image=image, label=i % 3) | more


class Twofold(Insects):
    """Two labels, of which no one is said to be the one."""

    MORE = ("breed",)


def build(kind, root, form):
    config = tfds.download.DownloadConfig(num_shards=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = kind(data_dir=str(root), file_format=form)
        builder.download_and_prepare(download_config=config)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of each format with the prepared set in it."""
    root = tmp_path_factory.mktemp("tfds")
    for form in FORMATS:
        build(Insects, root / form, form)
    build(Twofold, root / "tfrecord", "tfrecord")
    return root


def recipe(data_dir, tmp_path, source="tfds:insects", classes=3, **more):
    return recipes.load(
        "finetune",
        {
            "data.source": source,
            "data.data_dir": str(data_dir),
            "data.index_dir": str(tmp_path / "index"),
            "data.classes": classes,
            **more,
        },
    )


def number(data):
    """Which example a picture is, by its height, and by its red, decoded."""
    with Image.open(io.BytesIO(data)) as image:
        red = np.asarray(image)[5, 5, 0]
        assert abs(int(red) - 10 * (image.height - 20)) <= 3
        return image.height - 20


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("split", ["train", "validation", "train[20%:70%]"])
def test_every_example_is_read_undecoded_with_its_label(root, tmp_path, form, split):
    held = tfds_source.list_files(recipe(root / form, tmp_path), split)
    seen = [number(held.read(index)) for index in range(held.count)]
    np.testing.assert_array_equal(held.labels, [i % 3 for i in seen])
    assert held.labels.dtype == np.int32 and held.classes == NAMES
    if split in COUNTS:
        assert sorted(seen) == list(range(COUNTS[split]))
    else:
        assert held.count == 11 and len(set(seen)) == 11  # Rows 5 to 15 of 23.
    assert held.name(4) == f"tfds:insects/{split}#4"


@pytest.mark.parametrize("form", FORMATS)
def test_the_order_is_the_library_s_own(root, tmp_path, form):
    builder = tfds.builder("insects", data_dir=str(root / form))
    decoders = {"image": tfds.decode.SkipDecoding()}
    read = tfds.ReadConfig(interleave_cycle_length=1)
    if form == "tfrecord":
        told = builder.as_dataset(split="train", decoders=decoders, read_config=read)
        told = told.as_numpy_iterator()
    else:
        told = builder.as_data_source(split="train", decoders=decoders)
    held = tfds_source.list_files(recipe(root / form, tmp_path), "train")
    for index, example in zip(range(held.count), told, strict=True):
        assert held.read(index) == example["image"]
        assert held.labels[index] == example["label"]


def test_parts_of_a_split_do_not_overlap(root, tmp_path):
    config = recipe(root / "tfrecord", tmp_path)
    halves = [tfds_source.list_files(config, s) for s in ("train[:60%]", "train[60%:]")]
    seen = [number(half.read(i)) for half in halves for i in range(half.count)]
    assert sorted(seen) == list(range(COUNTS["train"]))


def test_labels_are_not_needed_where_there_are_no_classes(root, tmp_path):
    for form in FORMATS:
        config = recipe(root / form, tmp_path, classes=0)
        held = tfds_source.list_files(config, "train")
        assert held.labels is not None or held.classes == ()
        assert number(held.read(3)) in range(COUNTS["train"])


WITHOUT_TENSORFLOW = """
import sys
import types
from g2sd_jax import recipes
from g2sd_jax.data.tfds import source as tfds_source
overrides = {"data.source": "tfds:insects", "data.classes": 3}
overrides |= {"data.index_dir": sys.argv[1]}
for folder in sys.argv[2:]:
    config = recipes.load("finetune", overrides | {"data.data_dir": folder})
    held = tfds_source.list_files(config, "train")
    assert held.read(5) and len(held.labels) == held.count
assert "tensorflow" not in sys.modules
"""


def test_local_files_are_read_without_tensorflow(root, tmp_path):
    given = [tmp_path / "index", *(root / form for form in FORMATS)]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", FORMATS)
def test_batches_resume_and_divide_bit_for_bit(root, tmp_path, form):
    """From any step, and by two processes, as `order` says; `test_data` has more."""
    overrides = {"model.image_size": (16, 16), "data.train_examples": 23}
    config = recipe(root / form, tmp_path, **overrides)
    held = source.load(config, "train")
    whole = order.train_batches(held, 8, seed=3)
    whole = [next(whole) for _ in range(5)]
    halves = [order.train_batches(held, 8, 3, 2, p, 2) for p in range(2)]
    for expected in whole[2:]:
        parts = [next(half) for half in halves]
        assert not set(parts[0]["index"]) & set(parts[1]["index"])
        for name, array in expected.items():
            joined = np.concatenate([part[name] for part in parts])
            assert joined.tobytes() == array.tobytes()
    # Two epochs of two batches, and one of the third: each without repetition.
    for epoch in (whole[:2], whole[2:4]):
        assert len({i for batch in epoch for i in batch["index"]}) == 16
    for batch in whole:
        np.testing.assert_array_equal(
            batch["label"], held_labels(config)[batch["index"]]
        )


def held_labels(config):
    return tfds_source.list_files(config, "train").labels


# The index.


@pytest.mark.parametrize("form", FORMATS)
def test_the_index_is_made_once(root, tmp_path, form, monkeypatch):
    config = recipe(root / form, tmp_path)
    first = tfds_source.list_files(config, "train")

    def twice(*_, **__):
        raise AssertionError("looked into the files again")

    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "scan", twice)
        patch.setattr(tfrecord, "locate_picture", twice)
        again = tfds_source.list_files(config, "train")
    np.testing.assert_array_equal(first.labels, again.labels)
    assert [again.read(i) for i in range(9)] == [first.read(i) for i in range(9)]
    # Files that changed since are looked into again.
    shutil.copytree(root / form, tmp_path / "set")
    moved = recipe(tmp_path / "set", tmp_path)
    tfds_source.list_files(moved, "train")
    [one, *_] = (tmp_path / "set").rglob("insects-train*")
    os.utime(one, ns=(1, 1))
    monkeypatch.setattr(tfrecord, "scan", twice)
    monkeypatch.setattr(tfrecord, "locate_picture", twice)
    with pytest.raises(AssertionError, match="again"):
        tfds_source.list_files(moved, "train")


def test_an_index_that_cannot_be_kept_is_told(root, tmp_path):
    (tmp_path / "index").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=r"config.data.index_dir=.* cannot be written"):
        tfds_source.list_files(recipe(root / "tfrecord", tmp_path), "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-30], r"record 7 is damaged.*cut off"),
        (lambda data: b"\xff" * 8 + data[8:], r"record 0 is damaged"),
        (lambda data: data[:12] + b"\x07" + data[13:], r"record 0 .*wire type 7"),
        (lambda data: data.replace(b"image", b"other", 1), r"record 0 .*'image'"),
        (lambda data: b"", r"holds 0 examples, but its dataset_info.json says 8"),
    ],
)
def test_damaged_files_are_named(root, tmp_path, damage, message):
    shutil.copytree(root / "tfrecord", tmp_path / "set")
    [path] = (tmp_path / "set").rglob("insects-train*-00002-of-00003")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"00002-of-00003.*{message}"):
        tfds_source.list_files(recipe(tmp_path / "set", tmp_path), "train")


def test_labels_below_zero_are_read_as_such():
    """As a split without labels has them."""
    example = tf_example_pb2.Example()
    example.features.feature["label"].int64_list.value.append(-1)
    example.features.feature["image"].bytes_list.value.append(b"ab")
    example = example.SerializeToString()
    place = tfrecord.locate_picture(example, 0, len(example), "image", "label")
    assert example[place[0] : place[1]] == b"ab" and place[2] == -1


# Refusals.


def test_what_is_not_prepared_says_how(tmp_path, capsys):
    config = recipe(tmp_path, tmp_path, "tfds:imagenet2012")
    with pytest.raises(ValueError) as refused:
        tfds_source.list_files(config, "train")
    told = str(refused.value)
    assert f"`tfds build imagenet2012 --data_dir={tmp_path}`" in told
    assert f"{tmp_path}/downloads/manual" in told and "ILSVRC2012_img_train.tar" in told
    assert "\n" not in told
    config = recipe(tmp_path, tmp_path, "tfds:cifar10")
    with pytest.raises(ValueError, match=r"prepared.*`tfds build cifar10") as refused:
        tfds_source.list_files(config, "train")
    assert "manual" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("tfds:insect", "train", r"knows no such set.*did you mean insects"),
        ("tfds:imagenet2021", "train", r"did you mean imagenet2012"),
        ("tfds:cifar10:9.9.9", "train", r"cannot be loaded at version 9.9.9"),
        ("tfds:cifar10/huge", "train", r"BuilderConfig huge not found"),
        ("tfds:", "train", r"config.data.source='tfds:'"),
        ("tfds:insects", "val", r"no split 'val'; its splits are train, validation"),
        ("tfds:insects", "train[:0%]", r"'train\[:0%\]' holds no examples"),
        (
            "tfds:twofold",
            "train",
            r"2 features that are a label .*label, breed|breed, l",
        ),
    ],
)
def test_unknown_names_are_refused(root, tmp_path, source, split, message):
    config = recipe(root / "tfrecord", tmp_path, source)
    with pytest.raises(ValueError, match=message) as refused:
        tfds_source.list_files(config, split)
    assert "\n" not in str(refused.value)


def test_prepare_packs_a_tfds_set(root, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--source=tfds:insects", f"--data_dir={root / 'array_record'}"]
    given += [f"--out={out}", "--splits=train,validation", "--size=16"]
    assert cli.main(["prepare", *given]) == 0, capsys.readouterr().err
    assert "train: 23 pictures of 3 classes, 0 unreadable" in capsys.readouterr().out


# Sets that are not on a local disk.


@pytest.fixture
def remote(root, tmp_path, monkeypatch):
    """The recipe of a set that is taken for one at gs://…."""
    monkeypatch.setattr(tfds_files, "is_remote", lambda path: True)
    overrides = {"model.image_size": (16, 16), "data.train_examples": 23}
    overrides |= {"data.eval_split": "validation", "data.max_bad_share": 0.2}
    return recipe(root / "tfrecord", tmp_path, **overrides)


def test_a_stream_gives_the_batches_of_its_examples(remote):
    held = source.load(remote, "train")
    whole = order.train_batches(held, 8, seed=3)
    whole = [next(whole) for _ in range(5)]
    started = order.train_batches(held, 8, 3, start_step=3)
    for expected in whole[3:]:
        for name, array in next(started).items():
            assert array.tobytes() == expected[name].tobytes()
    for batch in whole:
        assert batch["image"].dtype == np.uint8 and batch["valid"].all()
        assert batch["crop"].shape == (8, 4) and batch["index"].dtype == np.int32
    seen = [i for batch in whole[:2] for i in batch["index"]]
    assert len(set(seen)) == 16


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_is_judged_as_a_local_set_is(remote, monkeypatch, processes):
    streamed, local = source.load(remote, "validation"), {}
    monkeypatch.undo()
    for batch, _ in order.eval_batches(source.load(remote, "validation"), 4):
        rows = zip(batch["index"], batch["image"], batch["valid"], strict=True)
        local |= {index: image for index, image, valid in rows if valid}
    labels = tfds_source.list_files(remote, "validation").labels
    counted = []
    for process in range(processes):
        for batch, told in order.eval_batches(streamed, 4, process, processes):
            index = batch["index"][batch["valid"]]
            assert [one["label"] for one in told] == labels[index].tolist()
            for row, number in enumerate(index):
                np.testing.assert_array_equal(batch["image"][row], local[number])
            counted.extend(index)
    assert sorted(counted) == list(range(COUNTS["validation"]))


def test_the_decoding_of_a_stream_is_metered(remote):
    meter = feed.Meter()
    held = datasets.metered(source.load(remote, "train"), meter.around)
    assert meter.total() == 0
    metered = order.train_batches(held, 8, seed=3)
    plain = order.train_batches(source.load(remote, "train"), 8, seed=3)
    np.testing.assert_array_equal(next(metered)["image"], next(plain)["image"])
    assert meter.total() > 0


def test_a_stream_without_labels_hands_out_none(remote):
    with remote.unlocked():
        remote.data.classes = 0
    found = tfds_source.find_split(remote, "train")._replace(label=None, classes=())
    held = tfds_stream.dataset(remote, found, "train")
    assert "label" not in next(order.train_batches(held, 8, seed=3))
    batch, told = next(order.eval_batches(held, 8))
    assert "label" not in batch and told == [{}] * 8


@pytest.mark.parametrize(("key", "value"), [("workers", 0), ("prefetch", -1)])
def test_too_few_workers_are_refused(key, value):
    with pytest.raises(ValueError, match=f"config.data.{key}={value} must be"):
        recipes.load("finetune", {f"data.{key}": value})


def test_the_keys_of_tfds_are_read(remote, monkeypatch):
    recorder = test_configs.Recorder(remote, monkeypatch)
    source.load(remote, "train")
    monkeypatch.setattr(tfds_files, "is_remote", lambda path: False)
    source.load(remote, "train")
    assert test_configs.TFDS - recorder.read == set()


def test_what_a_stream_cannot_do_is_refused(remote, root, tmp_path):
    held = source.load(remote, "train")
    with pytest.raises(ValueError, match=r"no example can be picked .*neighbours"):
        held.fetch(np.array([3, 20]))
    with remote.unlocked():
        remote.data.limit = remote.data.train_examples = 9
        assert source.load(remote, "train").count == 9
        remote.data.class_list = "imagenet1k"
    with pytest.raises(ValueError, match=r"class_list='imagenet1k': which classes"):
        source.load(remote, "train")
    config = recipe(root / "array_record", tmp_path)
    with pytest.raises(ValueError, match=r"array_record, which is read from a local"):
        source.load(config, "train")


def test_bad_examples_of_a_stream_are_replaced_and_listed(remote, monkeypatch):
    parsed = tfrecord.locate_picture

    def damaged(record, *about):
        start, end, label = parsed(record, *about)
        return (
            (start, start + 9, label)
            if label == 2 and b"/5.jpg" in record
            else (start, end, label)
        )

    monkeypatch.setattr(tfrecord, "locate_picture", damaged)
    held = source.load(remote, "train")
    batches = order.train_batches(held, 23, seed=3)
    batch = next(batches)
    assert batch["valid"].all() and len(set(batch["index"])) == 22
    np.testing.assert_array_equal(
        next(order.train_batches(held, 23, seed=3))["image"], batch["image"]
    )
    judged = list(order.eval_batches(source.load(remote, "validation"), 4))
    assert sum(batch["valid"].sum() for batch, _ in judged) == 6
    for batch, told in judged:
        assert batch["valid"][: len(told)].all() and len(told) == batch["valid"].sum()
    with remote.unlocked():
        remote.data.max_bad_share = 0.0
    # Another thread may meet the second before the first ends the run.
    with pytest.raises(ValueError, match=r"[12] of 23 examples of split 'train'"):
        next(order.train_batches(source.load(remote, "train"), 23, seed=3))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            lambda F: {"tags": F.Sequence(F.ClassLabel(num_classes=3))},
            "tags (Sequence)",
        ),
        (lambda F: {}, "its features are image (Image)"),
    ],
    ids=["several labels", "pictures alone"],
)
def test_a_set_without_a_single_label_says_what_it_has(
    root, tmp_path, monkeypatch, more, named
):
    from tensorflow_datasets import features as F

    features = F.FeaturesDict(dict(image=F.Image(shape=(8, 8, 3)), **more(F)))
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(features=features, supervised_keys=None)
    )
    config = recipe(root, tmp_path)
    with pytest.raises(ValueError, match="no single label") as error:
        tfds_source.find_features(builder, config)
    assert named in str(error.value) and "config.data.classes=0" in str(error.value)
    config.data.classes = 0
    assert tfds_source.find_features(builder, config) == ("image", None, ())
