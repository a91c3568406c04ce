# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is told and shown before step 0 is what step 0 gets."""

import jax
import numpy as np
import pytest
from PIL import Image

import runs
from g2sd_jax import core, palette, parallel, stages, summary, train
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order, source
from g2sd_jax.ops import augment


def labelled(labels, classes=()):
    image = np.zeros((len(labels), 16, 16, 3), np.uint8)
    config = runs.small("finetune")
    return datasets.in_memory(config, image, np.array(labels), classes)


def test_counts_name_the_most_the_least_and_the_empty():
    config = runs.small("finetune", batch=2)
    dataset = labelled([1, 1, 1, 3, 3, 0], ("a", "b", "c", "d", "e"))
    first, second, third = summary.counts(config, dataset)
    assert first == (
        "data: 6 examples in split 'train', 3 batches of 2 an epoch, 5 classes"
    )
    assert second == "labels: b 3, d 2, a 1"
    assert third == "labels without an example: c, e, 2 of 5"
    with_all = labelled([0, 1, 2, 3, 4])
    assert summary.counts(config, with_all)[1:] == ["labels: 0 1, 1 1, 2 1, 3 1, 4 1"]
    # A cut split is counted as it is used.
    cut = dataset._replace(count=3)
    assert summary.counts(config, cut)[1] == "labels: b 3"
    assert summary.counts(config, dataset._replace(labels=None)) == [first]


def test_many_classes_are_told_from_both_ends():
    config = runs.small("finetune", batch=2)
    config.data.classes = 40
    labels = np.repeat(np.arange(20), np.arange(1, 21))
    image = np.zeros((len(labels), 16, 16, 3), np.uint8)
    told = summary.counts(config, datasets.in_memory(config, image, labels))[1:]
    assert told == [
        "labels: 19 20, 18 19, 17 18, 16 17, 15 16 … 4 5, 3 4, 2 3, 1 2, 0 1",
        "labels without an example: 20, 21, 22, 23, 24 and 15 more, 20 of 40",
    ]


def first_batch(config):
    dataset = source.load(config, "train")
    mesh = parallel.make_mesh(config.mesh)
    host = next(order.train_batches(dataset, config.batch, config.seed))
    return dataset, host, parallel.to_global(host, mesh)


@pytest.mark.parametrize("name", runs.STAGES)
def test_every_stage_shows_what_its_loss_sees(name, monkeypatch):
    config = runs.small(name, accumulate=1, shown=4)
    stage = stages.build(config)
    _, host, batch = first_batch(config)
    key = jax.random.key(3)
    seen, mean, std = summary.look(stage, batch, key, 4)
    step_key = jax.random.fold_in(key, 0)
    draws = jax.jit(stage.draw)(step_key, batch)
    spec = augment.spec(config, train=True)
    want = augment.prepare(host, jax.device_get(draws), spec)["image"]
    assert "flip" in draws
    np.testing.assert_allclose(seen["image"], want[:4], atol=2e-2)
    np.testing.assert_allclose(mean, np.mean(want, (0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(std, np.std(want, (0, 1, 2)), atol=1e-3)


def test_a_run_leaves_the_picture_and_tells_once(tmp_path, capsys):
    config = runs.small("finetune", shown=10, total_steps=2)
    train.run(config, str(tmp_path))
    told = capsys.readouterr().out
    assert "data: 64 examples in split 'train', 4 batches of 16 an epoch" in told
    assert "its first 10 pictures: " in told
    with Image.open(tmp_path / "first_batch.png") as picture:
        # Tiles of 6 x 16 pixels, a border of 2 and two lines of text; 8 beside another.
        assert picture.size == (8 * 100, 2 * (100 + 2 * summary.LINE))
        shown = np.asarray(picture)
    assert not list(tmp_path.glob("*.partial"))
    # The very pixels of step 0, six by six.
    stage = stages.build(config)
    _, _, batch = first_batch(config)
    key = core.stream_keys(jax.random.key(config.seed), "step")["step"]
    want = summary.levels(config, summary.look(stage, batch, key, 10)[0]["image"])
    for i in (0, 9):
        top, left = (i // 8) * (100 + 2 * summary.LINE) + 2, (i % 8) * 100 + 2
        tile = shown[top : top + 96 : 6, left : left + 96 : 6].astype(int)
        assert np.abs(tile - want[i]).max() <= 1
        assert (tile[:, 1:] != tile[:, :-1]).any()

    (tmp_path / "DONE").unlink()
    (tmp_path / "first_batch.png").unlink()
    train.run(config, str(tmp_path))  # Resumed: told and shown already.
    assert not (tmp_path / "first_batch.png").exists()
    assert "data: " not in capsys.readouterr().out


def test_no_picture_is_shown_of_a_run_that_wants_none(tmp_path, capsys):
    train.run(runs.small("finetune", total_steps=1), str(tmp_path))
    told = capsys.readouterr().out
    assert "data: 64 examples" in told and "first batch" not in told
    assert not (tmp_path / "first_batch.png").exists()


def test_captions_say_what_was_mixed():
    config = runs.small("finetune")
    smoothing, names = config.augment.smoothing, ("a", "b", "c", "d", "e")
    one, other = np.eye(5)[1], np.eye(5)[4]
    mixed = np.stack([one, 0.75 * one + 0.25 * other, 0.2 * one + 0.8 * other])
    seen = {"target": mixed * (1 - smoothing) + smoothing / 5, "label": [1, 1, 1]}
    captions = [summary.caption(config, seen, i, names) for i in range(3)]
    assert smoothing > 0
    assert captions == ["b", "b, 75%\ne, 25%", "e, 80%\nb, 20%"]
    assert summary.caption(config, {"label": [3]}, 0, ()) == "3"
    assert summary.caption(config, {}, 0, names) == ""


def test_pictures_of_any_size_and_channels_become_tiles():
    config = runs.small("finetune")
    for channels, size in ((1, (8, 12)), (2, (8, 8)), (5, (300, 600))):
        config.data.mean, config.data.std = (0.5,), (0.25,)
        image = np.full((3, *size, channels), 1.0, np.float32)
        image[..., 0] = -2.0
        levels = summary.levels(config, image)
        assert levels.shape == (3, *size, 3) and levels[0, 0, 0, 0] == 0
        assert levels[0, 0, 0, 1] == (191 if channels > 2 else 0)
        text = "Gänseblümchen 雛菊\nzwei"
        tile = summary.tile(levels[0], text)
        low, high = summary.SIDES
        assert low <= max(tile.size[0], tile.size[1] - 2 * summary.LINE) - 4 <= high
        assert (np.asarray(tile)[-2 * summary.LINE :] < 128).any()


def pixels(**found):
    """[256] counts by label, those of 255 as `ignored`."""
    counted = np.zeros(256, np.int64)
    counted[255] = found.pop("ignored", 0)
    for label, count in found.items():
        counted[int(label[1:])] = count
    return counted


def test_pixels_are_told_by_name_and_mistakes_plainly():
    config = runs.small("finetune:task=segmentation")
    names = ("sky", "road", "car", "tree", "pole")
    told = summary.pixel_lines(config, pixels(_1=60, _0=25, _4=5, ignored=10), names)
    assert told == [
        "pixels of the first batch: road 60.0%, sky 25.0%, pole 5.0%; 10.0% ignored "
        "or padded",
        "classes without a pixel in it: car, tree",
    ]
    for found, wrong in (
        (dict(ignored=7), "WARNING: every pixel of the first batch is ignored"),
        (dict(_1=2, _2=2, ignored=96), "WARNING: 96.0% of the first batch's pixels"),
        (dict(_2=9, ignored=1), "WARNING: all of the first batch is car"),
    ):
        *_, last = summary.pixel_lines(config, pixels(**found), names)
        assert last.startswith(wrong) and "config.data.ignore=()" in last
    config.data.classes = 40
    found = pixels(**{f"_{label}": 100 - label for label in range(25)})
    first, second = summary.pixel_lines(config, found, ())
    assert "7 4.2%, 8 4.2%, 9 4.1%, …, 15 3.9%, 16 3.8%" in first
    assert second.endswith("25, 26, 27, 28, 29, 30, 31, 32, 33, 34 and 5 more")


def test_a_segmentor_shows_its_label_maps(tmp_path, capsys):
    config = runs.small("finetune:task=segmentation", shown=3)
    stage = stages.build(config)
    dataset, host, batch = first_batch(config)
    key = jax.random.key(3)
    summary.tell(config, stage, dataset, batch, key, str(tmp_path))
    told = capsys.readouterr().out
    ignored = (host["label_map"] == 255).mean()
    assert f"; {ignored:.1%} ignored or padded" in told and "WARNING" not in told
    seen, *_ = summary.look(stage, batch, key, 3)
    # The maps are mirrored with their pictures.
    mirrored = [(seen["label_map"][i] != host["label_map"][i]).any() for i in range(3)]
    assert any(mirrored) and not all(mirrored)
    levels = summary.levels(config, seen["image"])
    with Image.open(tmp_path / "first_batch.png") as picture:
        shown = np.asarray(picture)
    # Of 64 pixels, twice as large, twice beside each other; below is the legend.
    width, height = 2 * 128 + 6, 128 + 4 + 2 * summary.LINE
    assert shown.shape[1] == 3 * width and shown.shape[0] > height
    for i in range(3):
        left = i * width + 2
        whole = shown[2:130:2, left : left + 128 : 2]
        np.testing.assert_array_equal(whole, levels[i])
        tinted = shown[2:130:2, left + 130 : left + 258 : 2]
        want = palette.tinted(levels[i], seen["label_map"][i])
        np.testing.assert_array_equal(tinted, want)
        for label in np.unique(seen["label_map"][i]):
            here = (shown[height:] == palette.colours()[label]).all(axis=-1)
            assert here.sum() >= 64
    assert summary.caption(config, seen, 0, ()).count("%") >= 2
