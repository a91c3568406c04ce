# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is told and shown before step 0 is what step 0 gets."""

import jax
import numpy as np
import pytest
from PIL import Image

import runs
import slow
from g2sd_jax import core, loop, palette, parallel, stages, summary
from g2sd_jax.data import order, source
from g2sd_jax.ops import augment


def first_batch(config, stage):
    dataset = source.load(config, "train", stage.reads)
    mesh = parallel.make_mesh(config.mesh)
    host = next(order.train_batches(dataset, config.batch, config.seed))
    return dataset, host, parallel.to_global(host, mesh)


@pytest.mark.parametrize(
    "name", slow.parameters(runs.STAGES, quick=["generic_distill", "specific_cls"])
)
def test_every_stage_shows_what_its_loss_sees(name, monkeypatch):
    config = runs.small(name, accumulate=1, first_batch_images=4)
    stage = stages.build(config)
    _, host, batch = first_batch(config, stage)
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
    config = runs.small("finetune", first_batch_images=10, total_steps=2)
    loop.run(config, str(tmp_path))
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
    _, _, batch = first_batch(config, stage)
    key = core.stream_keys(jax.random.key(config.seed), "step")["step"]
    want = summary.levels(config, summary.look(stage, batch, key, 10)[0]["image"])
    for i in (0, 9):
        top, left = (i // 8) * (100 + 2 * summary.LINE) + 2, (i % 8) * 100 + 2
        tile = shown[top : top + 96 : 6, left : left + 96 : 6].astype(int)
        assert np.abs(tile - want[i]).max() <= 1
        assert (tile[:, 1:] != tile[:, :-1]).any()

    (tmp_path / "DONE").unlink()
    (tmp_path / "first_batch.png").unlink()
    loop.run(config, str(tmp_path))  # Resumed: told and shown already.
    assert not (tmp_path / "first_batch.png").exists()
    assert "data: " not in capsys.readouterr().out


@pytest.mark.slow
def test_no_picture_is_shown_of_a_run_that_wants_none(tmp_path, capsys):
    loop.run(runs.small("finetune", total_steps=1), str(tmp_path))
    told = capsys.readouterr().out
    assert "data: 64 examples" in told and "first batch" not in told
    assert not (tmp_path / "first_batch.png").exists()


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
        tile = summary.tile(core.Picture(levels[0], caption=text))
        low, high = summary.SIDES
        assert low <= max(tile.size[0], tile.size[1] - 2 * summary.LINE) - 4 <= high
        assert (np.asarray(tile)[-2 * summary.LINE :] < 128).any()


def test_a_segmentor_shows_its_label_maps(tmp_path, capsys):
    config = runs.small("finetune:task=segmentation", first_batch_images=3)
    stage = stages.build(config)
    dataset, host, batch = first_batch(config, stage)
    key = jax.random.key(3)
    summary.report(config, stage, dataset, batch, key, str(tmp_path))
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
        want = palette.tint(levels[i], seen["label_map"][i])
        np.testing.assert_array_equal(tinted, want)
        for label in np.unique(seen["label_map"][i]):
            here = (shown[height:] == palette.colours()[label]).all(axis=-1)
            assert here.sum() >= 64
    example = {name: values[0] for name, values in seen.items()}
    caption = stage.picture({**example, "image": levels[0]}, ()).caption
    assert caption.count("%") >= 2


def test_classes_that_no_font_draws_are_told_of():
    assert summary.undrawn(("straße", "дорога")) == ""
    assert "(1 classes by their numbers: the font" in summary.undrawn(("road", "道路"))
