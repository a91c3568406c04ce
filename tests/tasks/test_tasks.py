# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of a task, and a task of another package that keeps it."""

import importlib

import jax
import numpy as np
import pytest
from PIL import Image

import levels
import runs
from g2sd_jax import (
    finished,
    loop,
    metrics,
    parallel,
    recipes,
    stages,
    step,
    summary,
    tasks,
)
from g2sd_jax.data import source
from g2sd_jax.data.memory import fake


@pytest.fixture
def config(monkeypatch):
    """A recipe of fine-tuning for `tests/levels.py`, made known by two table rows."""
    monkeypatch.setitem(tasks.TASKS, "levels", "levels")
    monkeypatch.setitem(fake.MAKERS, "level", levels.make)
    return runs.small("finetune", task="levels", total_steps=4, first_batch_images=3)


def test_a_task_of_another_package_trains(config, tmp_path, capsys):
    config.log_every = 1
    final = loop.run(config, str(tmp_path))
    rows = metrics.read_lines(tmp_path / "metrics.jsonl")
    assert final["step"] == 4 and len(rows) == 4
    assert all(np.isfinite(row["loss/level"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    printed = capsys.readouterr().out
    assert "levels of 64 pictures\n" in printed and "labels:" not in printed
    with Image.open(tmp_path / summary.PICTURE) as picture:
        drawn = np.asarray(picture).astype(int)
    # Three pairs of 6 x 16 pixels beside each other, and below them the legend.
    height = 100 + 2 * summary.LINE
    assert drawn.shape[1] == 3 * 198 and drawn.shape[0] > height
    for i in range(3):
        left = drawn[2:98, 198 * i + 2 : 198 * i + 98]
        right = drawn[2:98, 198 * i + 100 : 198 * i + 196]
        assert np.abs(left + right - 255).max() == 0 and np.ptp(left) == 0


def test_a_task_says_why_it_cannot_be_divided(config, tmp_path):
    config.accumulate = 2
    words = rf"config\.accumulate=2: {levels.BECAUSE}; use config\.accumulate=1 on more"
    with pytest.raises(ValueError, match=words):
        loop.run(config, str(tmp_path))


def test_ignored_pixels_cannot_be_divided_into_parts():
    config = runs.small("finetune:task=segmentation", accumulate=2)
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    for divisor, words in (
        ("all", "stage finetune keeps batch_stats of the whole batch"),
        ("valid", r"config\.loss\.divisor=valid divides by the pixels"),
    ):
        config.loss.divisor = divisor
        with pytest.raises(ValueError, match=rf"config\.accumulate=2: {words}"):
            step.build(config, stages.build(config), mesh)


def test_a_source_that_lacks_what_a_task_reads_is_refused(config, tmp_path):
    config.data.source = "digits"
    words = (
        r"config\.data\.source='digits' gives label with each picture, but "
        r"config\.stage=finetune of config\.task=levels reads level; use "
        r"config\.data\.source=fake\."
    )
    with pytest.raises(ValueError, match=words):
        loop.run(config, str(tmp_path))


def test_an_unknown_task_names_those_that_are_known(config):
    config.task = "levles"
    with pytest.raises(ValueError, match=r"config\.task='levles'.*mean levels"):
        stages.build(config)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_names_a_recipe_of_its_own(name):
    config = recipes.load(tasks.recipe(name))
    assert config.task == name and finished.recipe_of(config) == tasks.recipe(name)
    assert set(importlib.import_module(tasks.TASKS[name]).NEEDS) <= set(config)


@pytest.mark.parametrize("name", [*runs.STAGES, *runs.SEGMENTATION, *runs.DETECTION])
def test_augmenting_twice_is_augmenting_once(name):
    config = runs.small(name)
    stage = stages.build(config)
    dataset = source.load(config, config.data.train_split, stage.reads)
    batch = dataset.fetch(np.arange(4), 0)

    @jax.jit
    def twice(batch):
        draws = stage.draw(jax.random.key(1), batch)
        once = stage.augment(batch, draws)
        return once, stage.augment(once, draws)

    once, again = twice(batch)
    assert once["image"].dtype == np.float32 and once.keys() == again.keys()
    for key in once:
        np.testing.assert_array_equal(once[key], again[key])


@pytest.mark.parametrize("name", [*runs.STAGES, *runs.SEGMENTATION, *runs.DETECTION])
def test_a_stage_reads_what_its_source_gives(name):
    config = runs.small(name)
    stage = stages.build(config)
    batch = source.load(config, "train", stage.reads).fetch(np.arange(1))
    assert {"image", *stage.reads} <= batch.keys()
