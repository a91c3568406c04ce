# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Keys that a recipe leaves to its data, its batch, and the length of its run."""

import json

import numpy as np
import pytest

import files
from g2sd_jax import open_keys, recipes, step, workdir
from g2sd_jax.data import source
from g2sd_jax.models import mae

PICTURES = files.photographs(per_class=3, splits=("train",), classes="abcd")


def folder(tmp_path, contents=PICTURES, **changes):
    root = files.write(tmp_path / "pictures", contents)
    overrides = {"data.source": "folder", "data.path": str(root), "batch": 4}
    return recipes.load("pretrain", overrides | {"optim.warmup_epochs": 0} | changes)


def test_examples_and_classes_are_those_of_the_data(tmp_path, capsys):
    config = open_keys.fill(folder(tmp_path), str(tmp_path / "run"))
    assert (config.data.train_examples, config.data.classes) == (12, 4)
    printed = capsys.readouterr().out
    assert "config.data.train_examples=12, config.data.classes=4" in printed
    limited = open_keys.fill(folder(tmp_path, **{"data.limit": 9}), str(tmp_path))
    assert limited.data.train_examples == 9


def test_a_value_of_the_recipe_stays_and_is_compared(tmp_path):
    config = folder(tmp_path, **{"data.train_examples": 11})
    config = open_keys.fill(config, str(tmp_path / "run"))
    assert (config.data.train_examples, config.data.classes) == (11, 4)
    with pytest.raises(ValueError, match=r"train_examples=11, but split 'train' hold"):
        source.load(config, "train")


@pytest.mark.parametrize(
    ("contents", "counts"),
    [
        (PICTURES, (12, 4)),
        ({name.split("/")[-1]: data for name, data in PICTURES.items()}, (3, 0)),
        # A stray picture beside class folders is passed over, not a reason for none.
        (PICTURES | {"train/stray.jpg": PICTURES["train/a/0.jpg"]}, (12, 4)),
    ],
    ids=["class folders", "pictures alone", "a stray picture"],
)
@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_folders_are_counted(tmp_path, kind, contents, counts):
    config = folder(tmp_path, contents, **{"data.source": kind, "batch": 2})
    assert source.count(config) == counts
    filled = open_keys.fill(config, str(tmp_path / "run"))
    dataset = source.load(filled, "train")
    assert dataset.count == counts[0] and len(dataset.classes) == counts[1]


@pytest.mark.parametrize(
    ("extra", "classes"),
    [({}, 0), ({"label": [0, 2, 2]}, 3), ({"label": [0, 1, 1], "classes": "abcd"}, 4)],
)
def test_arrays_are_counted(tmp_path, extra, classes):
    extra = {key: np.array(list(value)) for key, value in extra.items()}
    path = tmp_path / "set.npz"
    np.savez(path, image=np.zeros((3, 8, 8, 3), np.uint8), **extra)
    config = recipes.load("pretrain", {"data.path": str(path)})
    assert source.count(config) == (3, classes)


def test_other_sources_are_counted():
    for name, counts in (("digits", (1198, 10)), ("fake", (256, 10))):
        config = recipes.load("pretrain:smoke", {"data.source": name})
        assert source.count(config) == counts


def test_a_resumed_run_does_not_count_again(tmp_path):
    config = folder(tmp_path)
    path = tmp_path / "run"
    path.mkdir()
    filled = open_keys.fill(config, str(path))
    workdir.write_json(path / workdir.CONFIG, workdir.to_json_dict(filled))
    config = folder(tmp_path, **{"data.path": "nowhere"})
    assert config.data.train_examples is None
    assert open_keys.fill(config, str(path)).data.train_examples == 12


def test_the_learning_rate_follows_the_batch(tmp_path):
    assert recipes.load("pretrain").optim.lr == 1.5e-4 * 4096 / 256
    config = recipes.load("pretrain", {"batch": 64})
    assert config.optim.lr == 1.5e-4 * 64 / 256
    config = recipes.load("pretrain", {"batch": 64, "optim.base_lr": 1e-3})
    assert config.optim.lr == 1e-3 * 64 / 256
    config = recipes.load("pretrain", {"optim.lr": 0.5, "batch": 64})
    assert config.optim.lr == 0.5
    stored = workdir.to_json_dict(config)
    assert stored["optim"]["lr"] == 0.5 and json.dumps(stored)
    with pytest.raises(ValueError, match=r"config\.batch='None' is not an integer"):
        recipes.load("pretrain", {"batch": "None"})


def test_a_run_of_before_the_base_rate_is_resumed(tmp_path):
    config = recipes.load("pretrain:smoke")
    stored = workdir.to_json_dict(config)
    del stored["optim"]["base_lr"], stored["data"]["assumed"]
    workdir.write_json(tmp_path / workdir.CONFIG, stored)
    workdir.check(config, str(tmp_path))
    stored["optim"]["lr"] *= 2
    workdir.write_json(tmp_path / workdir.CONFIG, stored)
    with pytest.raises(ValueError, match=r"config\.optim\.lr was"):
        workdir.check(config, str(tmp_path))


def test_a_warm_up_longer_than_the_run_is_cut(tmp_path, capsys):
    config = folder(tmp_path, **{"total_epochs": 30, "optim.warmup_epochs": 40})
    filled = open_keys.fill(config, str(tmp_path / "run"))
    assert filled.optim.warmup_epochs == 3.0
    assert (
        "warmup_epochs=40 is as long as the run (30 epochs)" in capsys.readouterr()[0]
    )
    config = folder(tmp_path, **{"total_epochs": 41, "optim.warmup_epochs": 40})
    assert open_keys.fill(config, str(tmp_path / "run")).optim.warmup_epochs == 40


def test_the_end_of_a_schedule_is_not_above_its_beginning(tmp_path, capsys):
    root = files.write(tmp_path / "pictures", PICTURES)
    changes = {"data.source": "folder", "data.path": str(root), "batch": 2}
    config = recipes.load("generic_distill", changes)
    assert config.optim.lr < config.optim.min_lr
    assert open_keys.fill(config, str(tmp_path / "run")).optim.min_lr == 0
    assert "min_lr=2.5e-06 is above config.optim.lr=1.17" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"optim\.min_lr=0\.1 must be at most"):
        recipes.load("generic_distill", {"optim.min_lr": 0.1, "optim.lr": 0.01})


def test_without_data_the_published_sizes_are_assumed(capsys):
    open_keys._print_assumed.cache_clear()  # Printed once a process.
    assert step.count_steps(open_keys.assume(recipes.load("pretrain")))[0] == 312
    assert "no data are read" in capsys.readouterr().out
    config = open_keys.assume(recipes.load("finetune:task=segmentation"))
    assert (config.data.train_examples, config.data.classes) == (20_210, 150)
    with pytest.raises(ValueError, match=r"train_examples=None"):
        step.count_steps(recipes.load("pretrain"))


@pytest.mark.parametrize(
    ("width", "depth", "heads", "decoder"),
    [
        (768, 12, 12, (512, 8, 16)),
        (384, 12, 6, (256, 4, 8)),
        (192, 12, 3, (128, 4, 4)),
        (96, 4, 4, (64, 1, 4)),
        (24, 2, 2, (32, 1, 1)),
    ],
)
def test_a_custom_model_has_a_decoder_in_proportion(width, depth, heads, decoder):
    keys = dict(width=width, depth=depth, heads=heads, patch=16)
    config = recipes.load("pretrain:model=custom", {"model": keys})
    assert mae.decoder(config.model) == decoder
    config = recipes.load("pretrain:model=b16")
    assert mae.decoder(config.model) == (512, 8, 16)


def begun(folder, **changes):
    """The config of a run of three batches an epoch that has begun in `folder`."""
    settings = {"data.train_examples": 12, "batch": 4, "data.classes": 2} | changes
    config = open_keys.fill(recipes.load("pretrain:smoke", settings), str(folder))
    workdir.check(config, str(folder))
    open_keys.check_length(config, str(folder))
    workdir.claim(config, str(folder))
    return config


def test_a_run_goes_on_to_a_later_end_and_never_to_an_earlier_one(tmp_path, capsys):
    begun(tmp_path, **{"total_steps": 2})
    (tmp_path / workdir.DONE).write_text('{"step": 2}')
    capsys.readouterr()
    begun(tmp_path, **{"total_steps": 4})
    assert "begun with 2 steps and goes on to step 4" in capsys.readouterr().out
    assert not (tmp_path / workdir.DONE).exists()
    begun(tmp_path, **{"total_steps": None, "total_epochs": 4 / 3})
    assert "goes on" not in capsys.readouterr().out  # These are 4 steps, too.
    begun(tmp_path, **{"total_steps": None, "total_epochs": 2.0})
    assert "begun with 4 steps and goes on to step 6" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"begun with 6 steps, now 5 are asked"):
        begun(tmp_path, **{"total_steps": 5})
    with pytest.raises(ValueError, match=r"config\.batch was 4, now 2.*Use another"):
        begun(tmp_path, **{"total_steps": 9, "batch": 2})


def test_a_longer_run_keeps_the_warm_up_it_began_with(tmp_path, capsys):
    short = begun(tmp_path, **{"total_steps": 3, "optim.warmup_epochs": 2.0})
    assert short.optim.warmup_epochs == pytest.approx(0.1)
    for total in (4, 30, 60, 60):  # The last is a restart.
        config = begun(tmp_path, **{"total_steps": total, "optim.warmup_epochs": 2.0})
        assert config.optim.warmup_epochs == short.optim.warmup_epochs
    assert "warmup_epochs=2 stays 0.1" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"config\.optim\.warmup_epochs was 0\.1"):
        begun(tmp_path, **{"total_steps": 60, "optim.warmup_epochs": 0.5})


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_a_warm_up_that_was_not_cut_is_compared(tmp_path, warmup):
    begun(tmp_path, **{"total_steps": 30, "optim.warmup_epochs": warmup})
    with pytest.raises(ValueError, match=rf"warmup_epochs was {warmup}, now 2\.0"):
        begun(tmp_path, **{"total_steps": 60, "optim.warmup_epochs": 2.0})
