# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The measure of the input: a Pillow loop that does the recipe's work, and figures."""

import json

import numpy as np
import pytest
from PIL import Image

import files
import label_map_files
from g2sd_jax.measure import input_speed, pillow_loop, pillow_pairs, readers
from g2sd_jax.tools import bench


def test_bench_tells_both_and_how_far_apart_their_pixels_are(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(input_speed, "ROUNDS", 1)
    path = files.write(tmp_path / "set", files.photographs())
    argv = ["--input", "--config=finetune", "--step=100", f"--out={tmp_path}/out.json"]
    argv += [f"--config.data.path={path}", "--config.data.source=folder"]
    argv += ["--config.model.image_size=24,16", "--config.data.classes=2"]
    assert bench.main([*argv, f"--original={path}"]) == 0
    [figures] = json.loads((tmp_path / "out.json").read_text())
    assert figures["pictures"] == 12
    assert figures["times_pillow"] == pytest.approx(
        figures["images_per_s_per_core"] / figures["pillow_images_per_s"]
    )
    assert figures["cpu_times_pillow"] == pytest.approx(
        figures["pillow_cpu_ms"] / figures["cpu_ms"]
    )
    assert figures["step_waits"] == max(0, 1 - figures["images_per_s"] / 100)
    assert "12 pictures" in (said := capsys.readouterr().out)
    assert "a step of 100 images/s waits" in said
    with pytest.raises(ValueError, match=r"source='fake' holds no picture files"):
        bench.main(["--input", "--config=finetune:smoke"])


def test_label_maps_are_read_by_both(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_speed, "ROUNDS", 1)
    path = files.write(tmp_path / "set", label_map_files.pairs())
    argv = ["--input", "--config=finetune:task=segmentation", "--step=100"]
    argv += [f"--config.data.path={path}", "--config.data.classes=4"]
    argv += ["--config.data.train_examples=5", "--config.model.image_size=32,32"]
    argv += ["--config.augment.fit=48,192", f"--out={tmp_path}/out.json"]
    assert bench.main(argv) == 0
    [figures] = json.loads((tmp_path / "out.json").read_text())
    sizes = [len(data) for name, data in label_map_files.pairs().items()]
    assert figures["pictures"] == 5
    assert figures["kilobytes"] == pytest.approx(sum(sizes) / 2 / 5 / 1000)  # A split.
    assert figures["labels_differ"] < 0.01
    said = capsys.readouterr().out
    assert "of the labels differ" in said and "a step of 100 images/s waits" in said
    with pytest.raises(ValueError, match=r"--original=a is for pictures that were"):
        bench.main([*argv, "--original=a"])


@pytest.mark.parametrize("ratio", [1.0, 1.7, 0.5])
def test_the_loop_takes_the_crop_of_the_reader(ratio, tmp_path):
    """Enlarged the same to rounding; shrunken, Pillow blurs, but it is the same place.

    At half the size the crop is padded.
    """
    path = files.write(tmp_path, label_map_files.pairs())
    scale = {"augment.scale": (ratio, ratio)}
    config = label_map_files.recipe(path, **scale)
    both = readers.of(config, "")
    dataset = both.dataset(1)
    told = both.fidelity(dataset, np.arange(5))
    assert told["labels_differ"] < 0.01
    assert told["mean_error"] < (0.3 if ratio >= 1 else 12)
    if ratio >= 1:
        assert told["share_beyond_8"] < 0.01
    read = lambda kind, end: (path / f"{kind}/training/ADE_2.{end}").read_bytes()
    given = read("images", "jpg"), read("annotations", "png"), config, 2
    pixels, labels = pillow_pairs.load(*given, False)
    mirrored = pillow_pairs.load(*given, True)
    width = dataset.fetch(np.array([2]), 0)["image_size"][0, 1]
    for plain, flipped in zip((pixels, labels), mirrored, strict=True):
        np.testing.assert_array_equal(flipped[:, :width], plain[:, :width][:, ::-1])
        np.testing.assert_array_equal(flipped[:, width:], plain[:, width:])


@pytest.mark.parametrize("bits", [1, 4])
def test_the_loop_reads_labels_of_few_bits(bits, tmp_path):
    held = label_map_files.pairs()
    for i in range(5):
        stored = label_map_files.labels(i, (label_map_files.SIZE[0] + 4 * i, 60))
        data = label_map_files.four_bits(stored)
        if bits == 1:
            data = files.encode(Image.fromarray(stored > 1), "PNG")
        held[f"annotations/training/ADE_{i}.png"] = data
    both = readers.of(label_map_files.recipe(files.write(tmp_path, held)), "")
    assert both.fidelity(both.dataset(1), np.arange(5))["labels_differ"] < 0.01


def test_the_loop_does_the_whole_work(rng):
    config = files.recipe("", "finetune")
    config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
    data = files.encode(files.pixels((60, 80)))
    config.augment.randaugment = ""
    plain = pillow_loop.load(data, config, 0, False, rng)
    assert plain.shape == (24, 16, 3) and plain.dtype == np.uint8
    mirrored = pillow_loop.load(data, config, 0, True, rng)
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    config.augment.randaugment = "rand-m9-mstd0.5-inc1"
    config.augment.erase = 0.0
    levels = [pillow_loop.load(data, config, 0, False, rng) for _ in range(40)]
    assert levels[0].dtype == np.float32
    untouched = [np.allclose((x * 0.25 + 0.5) * 255, plain, atol=1e-3) for x in levels]
    assert (
        0 < sum(untouched) < 25
    )  # A quarter of them, for each of two is done by half.
    config.augment.erase = 1.0
    erased = np.stack([pillow_loop.load(data, config, 0, False, rng) for _ in range(9)])
    assert abs(erased).max() > 2.01  # Noise goes beyond what a picture can hold.


@pytest.mark.parametrize("number", range(15))
def test_every_operation_changes_the_picture(number, rng):
    image = Image.fromarray(files.pixels() // 2 + 60)
    found = pillow_loop.operation(image, number, 9.0, (1, 2, 3), rng)
    assert found.size == image.size
    assert (np.asarray(found) != np.asarray(image)).mean() > 0.05
