# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches of picture files: their pixels, their order, and what happens to bad ones."""

import json
import math
import re
import threading
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

import files
import memory
import runs
from g2sd_jax import loop, recipes, workdir
from g2sd_jax.data import crops, decoder, failures, folder, order, source
from g2sd_jax.data import pipeline as pipelines
from g2sd_jax.data.memory import arrays, pictures
from g2sd_jax.data.processes import threads
from g2sd_jax.evaluators import fold

HEADS = 12  # Pictures of the training split of `folders`.


@pytest.fixture(autouse=True)
def unlisted():
    yield
    failures.list_in(None)


@pytest.fixture
def path(tmp_path):
    return files.write(tmp_path / "set", files.photographs())


def spoil(path, names, data=b"no picture"):
    for name in names:
        (path / name).write_bytes(data)


def opened(path, split="train", **data):
    held = folder.list_files(files.recipe(path, **data), split)
    return held, pipelines.dataset(files.recipe(path, **data), held, split)


def layout(batch):
    return {name: (held.shape, held.dtype) for name, held in batch.items()}


@pytest.mark.parametrize("canvas", [1.75, 0.0])
def test_invented_batches_are_laid_out_as_real_ones(path, canvas):
    config = files.recipe(path, canvas=canvas)
    _, real = opened(path, canvas=canvas)
    drawn = real.fetch(np.arange(3), 0)
    del drawn["index"], drawn["valid"]
    assert layout(source.invented(config, 3)) == layout(drawn)
    assert layout(drawn)["image"][0] == ((3, 42, 28, 3) if canvas else (3, 24, 16, 3))


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# Pixels.


def by_pillow(held, index, config, epoch):
    picture = decoder.open_picture(held.read(index), 3)
    pixels, _ = picture.cut((0, 0, *picture.size))
    y, x, h, w = crops.training_box(picture.size, crops.rule(config), epoch, index)
    cut = Image.fromarray(pixels).crop((x, y, x + w, y + h))
    return np.asarray(cut.resize((16, 24), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(40, 60), (120, 170)])
@pytest.mark.parametrize("canvas", [1.75, 4.0, 0.0])
def test_training_pictures_become_pillows(tmp_path, size, canvas):
    """Within the stated two grey levels, 1 % beyond 8; exact where the host resizes."""
    path = files.write(tmp_path, files.photographs(size=size))
    config = files.recipe(path, canvas=canvas)
    held, dataset = opened(path, canvas=canvas)
    batch = dataset.fetch(np.arange(HEADS), 3)
    ratio = canvas or 1.0
    assert batch["image"].shape == (HEADS, 24 * ratio, 16 * ratio, 3)
    expected = np.stack([by_pillow(held, i, config, 3) for i in range(HEADS)])
    error = np.abs(cut_out(batch) - expected.astype(int))
    if canvas == 0.0:
        assert error.max() == 0
    assert error.mean() < 2 and (error > 8).mean() < 0.01
    assert (cut_out(dataset.fetch(np.arange(HEADS), 4)) != cut_out(batch)).any()


def cut_out(batch):
    """What a device that sees the box alone makes of a canvas."""
    rows = []
    for image, (y, x, height, width) in zip(batch["image"], batch["crop"], strict=True):
        inside = image[: math.ceil(y + height), : math.ceil(x + width)]
        rows.append(pictures.resize(inside, (y, x, height, width), (24, 16)))
    return np.stack(rows)


def test_what_lies_outside_the_box_is_zero(path):
    batch = opened(path)[1].fetch(np.arange(HEADS), 0)
    for image, (y, x, height, width) in zip(batch["image"], batch["crop"], strict=True):
        bottom, right = int(np.ceil(y + height)), int(np.ceil(x + width))
        assert not image[bottom:].any() and not image[:, right:].any()
        assert image[:bottom, :right].all(axis=-1).mean() > 0.9


def test_evaluation_pictures_are_pillows_own(path):
    held, dataset = opened(path, "val")
    config = files.recipe(path)
    batch = dataset.fetch(np.arange(5))
    assert batch["image"].shape == (5, 24, 16, 3) and "crop" not in batch
    for index in range(5):
        picture = decoder.open_picture(held.read(index), 3)
        image = Image.fromarray(picture.cut((0, 0, *picture.size))[0])
        height, width = image.height, image.width
        assert config.data.eval_crop is None
        scale = max(int(24 / 0.875) / height, int(16 / 0.875) / width)
        image = image.resize((int(width * scale), 27), Image.Resampling.BICUBIC)
        top, left = round((27 - 24) / 2), round((image.width - 16) / 2)
        expected = np.asarray(image.crop((left, top, left + 16, top + 24))).astype(int)
        assert np.abs(batch["image"][index] - expected).max() <= 1


def test_grey_pictures(path):
    config = files.recipe(path)
    config.model.channels = 1
    dataset = pipelines.dataset(config, folder.list_files(config, "train"), "train")
    assert dataset.fetch(np.arange(3), 0)["image"].shape == (3, 42, 28, 1)
    assert dataset.fetch(np.arange(3))["image"].shape == (3, 24, 16, 1)


# Order.


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_resumed_batches_are_byte_identical(path, kind):
    config = files.recipe(path, source=kind, train_examples=HEADS)
    whole = order.train_batches(source.load(config, "train"), 4, 1)
    batches = [next(whole) for _ in range(8)]
    config.data.workers, config.data.prefetch = 1, 0
    resumed = order.train_batches(source.load(config, "train"), 4, 1, 5)
    for expected in batches[5:]:
        same(next(resumed), expected)


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_two_processes_hold_the_halves_of_one_batch(path, kind):
    config = files.recipe(path, source=kind, train_examples=HEADS)
    load = lambda split: source.load(config, split, evaluate=True)
    whole = order.train_batches(load("train"), 4, 1, 2)
    halves = [order.train_batches(load("train"), 4, 1, 2, p, 2) for p in range(2)]
    for _ in range(5):
        one, two = (next(half) for half in halves)
        assert not set(one["index"]) & set(two["index"])
        same({key: np.concatenate([one[key], two[key]]) for key in one}, next(whole))
    whole = list(order.eval_batches(load("val"), 8))
    halves = [list(order.eval_batches(load("val"), 8, p, 2)) for p in range(2)]
    assert len(whole) == len(halves[0]) == len(halves[1]) == 2
    for both in zip(*halves, whole, strict=True):
        one, two, held = (pair[0] for pair in both)
        valid = np.concatenate([one["valid"], two["valid"]])
        joined = np.concatenate([one["image"], two["image"]])[valid]
        np.testing.assert_array_equal(joined, held["image"][held["valid"]])
    assert sum(len(examples) for half in halves for _, examples in half) == HEADS


def test_starting_late_reads_nothing_before(path):
    held, _ = opened(path)
    read = []

    class Places(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    held = held._replace(places=Places(held.places))
    config = files.recipe(path)
    config.data.prefetch = 0  # One at a time, as no run reads.
    dataset = pipelines.dataset(config, held, "train")
    batch = next(order.train_batches(dataset, 4, 0, start_step=1000))
    assert sorted(read) == sorted(batch["index"])


def test_folder_and_arrays_give_the_same_labels_in_the_same_order(path):
    batches = [
        order.train_batches(
            source.load(files.recipe(path, source=kind, train_examples=HEADS), "train"),
            4,
            seed=5,
        )
        for kind in ("folder", "arrays")
    ]
    for _ in range(7):
        one, two = (next(each) for each in batches)
        for key in ("label", "index", "valid"):
            np.testing.assert_array_equal(one[key], two[key])


def test_reading_ahead_keeps_order_and_is_bounded():
    running, lock = [], threading.Lock()

    def read(number):
        with lock:
            running.append(number)
        time.sleep(0.01 * (number % 3))
        return number

    results = order.read_ahead(read, iter(range(12)), ahead=3)
    assert next(results) == 0 and running == [0]  # Whoever looks once reads once.
    assert next(results) == 1
    time.sleep(0.1)
    assert sorted(running) == [0, 1, 2, 3, 4]
    assert list(results) == list(range(2, 12))


def test_what_fails_ahead_is_raised_in_its_turn():
    def read(number):
        return 1 // (number - 2)

    results = order.read_ahead(read, iter(range(9)), ahead=2)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


# Bad examples.


def bad_rows(run):
    lines = (run / failures.FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_bad_example_gives_way_to_the_next(path, tmp_path):
    held, dataset = opened(path, max_bad_share=0.5)
    good = dataset.fetch(np.array([5]), 0)
    spoil(path, ["train/a/2.jpg", "train/a/1.jpg"])  # Examples 4 and 2.
    (path / "train/b/1.jpg").unlink()  # Example 3, listed but gone.
    (path / "train/a/2.jpg").write_bytes(b"")
    (tmp_path / "run").mkdir()
    failures.list_in(tmp_path / "run")
    for _ in range(2):
        batch = dataset.fetch(np.arange(2, 6), 0)
        np.testing.assert_array_equal(batch["index"], [5, 5, 5, 5])
        np.testing.assert_array_equal(batch["label"], [1, 1, 1, 1])
        assert batch["valid"].all()
        np.testing.assert_array_equal(batch["image"][:1], good["image"])
    rows = bad_rows(tmp_path / "run")
    assert {row["index"]: row["name"] for row in rows} == {
        i: held.name(i) for i in (2, 3, 4)
    }
    assert len(rows) == 3  # Once each, though met several times.
    reasons = {row["index"]: row["reason"] for row in rows}
    assert "no picture that is read" in reasons[2] and "empty" in reasons[4]
    assert "No such file" in reasons[3]
    spoil(path, ["train/b/5.jpg"])  # The last one: the first takes its place.
    assert dataset.fetch(np.array([HEADS - 1]), 0)["index"] == [0]


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_leaves_bad_examples_out(path, processes):
    spoil(path, ["val/a/1.jpg", "val/b/5.jpg"])  # Examples 2 and 11.
    _, dataset = opened(path, "val", max_bad_share=0.5)
    parts = [
        list(order.eval_batches(dataset, 8, p, processes)) for p in range(processes)
    ]
    seen = []
    for batch, examples in (pair for part in parts for pair in part):
        count = int(batch["valid"].sum())
        assert batch["valid"][:count].all() and count == len(examples)
        assert [e["label"] for e in examples] == batch["label"][:count].tolist()
        seen.extend(batch["index"][:count])
    assert sorted(seen) == [i for i in range(HEADS) if i not in (2, 11)]


def test_too_many_bad_examples_stop_the_run(path, tmp_path):
    spoil(path, [f"train/{c}/{i}.jpg" for c in "ab" for i in range(4)])
    (tmp_path / "run").mkdir()
    failures.list_in(tmp_path / "run")
    _, dataset = opened(path, max_bad_share=0.5)
    with pytest.raises(ValueError) as told:
        dataset.fetch(np.arange(HEADS), 0)
    # Another thread may have noted the eighth before the first error is raised.
    message = "[78] of 12 examples of split 'train' cannot be read"
    assert re.search(message, str(told.value))
    assert "config.data.max_bad_share=0.5" in str(told.value)
    assert str(tmp_path / "run" / failures.FILE) in str(told.value)


def test_the_list_goes_on_after_a_kill(tmp_path):
    config = recipes.load("pretrain", {"data.max_bad_share": 0.25})
    failures.list_in(tmp_path)
    for name in ("x", "y"):
        failures.note(config, "train", 8, 0, name, "odd")
    with (tmp_path / failures.FILE).open("a") as file:
        file.write("[1]\n7\n{}\n")  # Damaged.
        file.write('{"split": "train", "ind')  # Killed while writing.
    failures.list_in(tmp_path)
    failures.note(config, "train", 8, 0, "x", "odd")  # Known, so it counts once.
    with pytest.raises(ValueError, match=r"3 of 8 examples"):
        failures.note(config, "train", 8, 0, "z", "odd")
    lines = (tmp_path / failures.FILE).read_text().splitlines()
    assert [json.loads(line)["name"] for line in (*lines[:2], lines[6])] == [
        "x",
        "y",
        "z",
    ]
    failures.list_in(tmp_path, process_index=3)
    failures.note(config, "val", 8, 0, "x", "odd")
    assert (tmp_path / "bad_examples.3.jsonl").exists()


def test_a_refused_run_leaves_no_folder_for_its_bad_examples(tmp_path):
    config = recipes.load("pretrain", {"data.max_bad_share": 0.2})
    run = tmp_path / "run"
    failures.list_in(run)
    failures.note(config, "train", 8, 0, "x", "odd")
    with pytest.raises(ValueError, match="no workdir yet; the first are x, y"):
        failures.note(config, "train", 8, 1, "y", "odd")
    assert not run.exists()
    run.mkdir()  # As a run claims it.
    failures.sync()
    assert [row["name"] for row in bad_rows(run)] == ["x", "y"]
    failures.list_in(None)  # The run is over: what comes next is another's.
    failures.note(config, "val", 8, 2, "z", "odd")
    assert len(bad_rows(run)) == 2
    # A run keeps others out of its folder before it claims it.
    failures.list_in(run, process_index=1, claimed=False)
    failures.note(config, "train", 8, 3, "w", "odd")
    failures.list_in(None)
    assert [path.name for path in run.iterdir()] == [failures.FILE]


def test_a_list_in_a_bucket_is_written_anew(tmp_path, monkeypatch):
    local = epath.Path
    bucket = lambda path: local(str(path).replace("gs://b", str(tmp_path / "b")))
    monkeypatch.setattr(failures.epath, "Path", bucket)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    config = recipes.load("pretrain", {"data.max_bad_share": 1.0})
    listing = failures.Listing("gs://b/" + failures.FILE)
    counts = []
    for at in range(6):
        listing.add("train", at, f"{at}", "odd")
        counts.append(len(bad_rows(tmp_path / "b")))
    assert counts == [1, 2, 2, 4, 4, 4]
    listing.sync()
    assert len(bad_rows(tmp_path / "b")) == 6
    failures.list_in("gs://b")
    failures.note(config, "train", 8, 6, "6", "odd")
    failures.list_in(None)  # Writes what waits.
    assert [row["name"] for row in bad_rows(tmp_path / "b")] == list("0123456")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]  # And no `gs:`.


# Whole runs.


def run_config(path, **data):
    defaults = dict(source="folder", path=str(path), classes=2, train_examples=96)
    config = runs.small("finetune")
    config.update({"data": {**defaults, **data}, "eval_epochs": 0.5})
    return config


@pytest.fixture
def many(tmp_path):
    return files.write(
        tmp_path / "many", files.photographs(per_class=48, size=(20, 24))
    )


@pytest.mark.slow
def test_one_per_cent_trains_and_resumes_as_if_never_stopped(
    many, tmp_path, monkeypatch
):
    spoil(many, ["train/a/7.jpg", "val/b/3.jpg"])
    final = loop.run(run_config(many), str(tmp_path / "whole"))
    assert final["eval/count"] == 95
    rows = bad_rows(tmp_path / "whole")
    assert sorted(row["split"] for row in rows) == ["train", "val"]

    class Killed(Exception):
        pass

    def fail(*_args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fold, "make_evaluate", lambda *_: fail)
        with pytest.raises(Killed):
            loop.run(run_config(many), str(tmp_path / "cut"))
    assert loop.run(run_config(many), str(tmp_path / "cut")) == final
    assert sorted(row["name"] for row in bad_rows(tmp_path / "cut")) == sorted(
        row["name"] for row in rows
    )


def test_sixty_per_cent_stop(many, tmp_path):
    spoil(many, [f"train/{c}/{i}.jpg" for c in "ab" for i in range(29)])
    # The second is too many; another thread may have met a third before it was told.
    with pytest.raises(ValueError, match=r"[2-9] of 96 [^;]*=0.02 allows"):
        loop.run(run_config(many), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_workers_may_change_and_the_canvas_may_not(path, tmp_path):
    claim = lambda **data: workdir.claim(
        run_config(path, **data), str(tmp_path / "run")
    )
    claim()
    claim(workers=3, prefetch=1, max_bad_share=0.5)
    with pytest.raises(ValueError, match=r"config.data.canvas was 1.75, now 2.0"):
        claim(canvas=2.0)


def test_arrays_name_a_bad_picture(path):
    spoil(path, ["train/a/2.jpg"])
    with pytest.raises(
        ValueError, match=r"a/2.jpg cannot be decoded .*repair or remove"
    ):
        arrays.load(files.recipe(path, source="arrays"), "train")


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """20,000 batches were measured once (docs/performance.md); a leak shows sooner."""
    failures.list_in(tmp_path)
    with threads.closing():
        path = memory.photographs(tmp_path / "set")
        first, *later = memory.growth(path, 1000)
    assert max(later) - first < 15  # One batch kept in ten would add 300.
