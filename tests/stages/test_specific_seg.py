# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Specific distillation of segmentors on pictures without label maps."""

import jax
import numpy as np
import pytest

import files
import finished_runs
import runs
from g2sd_jax import finished, loop, metrics, open_keys, stages
from g2sd_jax.data import source

NAMES = ("sky", "road", "car", "tree", "pole")


@pytest.fixture
def unlabelled(tmp_path):
    """A run on nine pictures, of a teacher that knows five classes."""
    model = dict(width=24, depth=3, taps=(0, 1, 1, 2))
    teacher, *_ = finished_runs.workdir(
        tmp_path, runs.SEGMENTATION[0], model, class_names=NAMES
    )
    pictures = {
        f"training/{i}.jpg": files.encode(files.pixels(seed=i)) for i in range(9)
    }
    config = runs.small("specific_seg", total_steps=2, batch=8, log_every=1)
    config.teacher.checkpoint = teacher
    config.data.update(source="maps", path=str(files.write(tmp_path / "set", pictures)))
    config.data.update(images="{split}/*", labels="", reduce_zero_label=False)
    with config.unlocked():
        config.data.update(train_examples=None, classes=None)
    return config


def test_the_task_is_left_out_and_the_classes_are_the_teachers(unlabelled, tmp_path):
    config = open_keys.fill(unlabelled, str(tmp_path / "student"))
    stage = stages.build(config)
    assert config.data.classes == 5 and not stage.evaluators
    assert stage.describe["class_names"] == NAMES
    dataset = source.load(config, config.data.train_split, stage.reads)
    (line,) = stage.summarise(dataset, {})
    words = "none of 9 pictures; the task's own loss (decode, aux) is left out"
    assert words in line and "nothing is evaluated" in line
    key = jax.random.key(0)
    variables = dict(jax.eval_shape(stage.init, key))
    batch = dataset.fetch(np.arange(8), 0)
    draws = jax.eval_shape(stage.draw, key, batch)
    frozen = jax.eval_shape(stage.frozen)
    params = variables.pop("params")
    inputs = params, variables, frozen, batch, draws, 0
    _, (_, metrics) = jax.eval_shape(stage.loss, *inputs)
    assert {name for name in metrics if "loss" in name} == {"loss", "loss/cwd"}


@pytest.mark.slow
def test_a_student_of_pictures_alone_is_trained(unlabelled, tmp_path, capsys):
    final = loop.run(unlabelled, str(tmp_path / "student"))
    printed = capsys.readouterr().out
    assert "(decode, aux) is left out" in printed
    assert "config.data.classes=5 are those of" in printed
    assert final["step"] == 2 and not any(key.startswith("eval/") for key in final)
    row = metrics.read_lines(tmp_path / "student/metrics.jsonl")[-1]
    assert row["loss"] == row["loss/cwd"] > 0
    student = finished.from_run(str(tmp_path / "student"))
    assert tuple(student.describe["class_names"]) == NAMES


def test_fine_tuning_has_nothing_to_learn_there(unlabelled):
    config = runs.small(runs.SEGMENTATION[0])
    config.data.labels = ""
    with pytest.raises(ValueError, match="leaves nothing to learn from"):
        stages.build(config)
