# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mistakes made on purpose, and what the doctor says of them."""

import itertools
import json

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

import files
import runs
from g2sd_jax import cli, finished, loop, open_keys, parallel, recipes, stages, workdir
from g2sd_jax.data import order, source
from g2sd_jax.pages import fingerprint, sections
from g2sd_jax.stages import specific_seg
from g2sd_jax.tools import chain as chains
from g2sd_jax.tools import doctor

STEP = "chains/digits student_mae"
PARTLY = {"chains/camvid": {"mae", "mae_ms"}}  # Of its other steps there is one seed.
RAW = "chains/digits_dmae student_mae"  # The same on raw pixels.


@pytest.fixture(scope="module")
def prints():
    return fingerprint.shipped()


def examined(path, prints):
    path = str(path)
    config, rows = recipes.from_workdir(path), sections.rows_of(path)
    return doctor.examine(doctor.Patient(path, config, rows), prints)


def patient(stage, rows=(), steps=0, **changes):
    config = runs.small(stage, **changes)
    return doctor.Patient("runs/a", config, [dict(step=steps), *rows])


class Enough(Exception):
    """The run that is examined goes no further."""


def digits(**changes):
    """The student's own pre-training, whose loss is told every fifty steps."""
    config = fingerprint.config_of("chains/digits", "student_mae")
    with config.unlocked():
        config.progress = False
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("mistake", "nearest", "told"),
    [
        ({}, STEP, []),
        (
            {"data.mean": (0.0,), "data.std": (1.0,), "target": "raw"},
            RAW,
            [
                "config.target=raw, where the recipe pretrain has normalised",
                "the pictures have mean 0.30",
                f"where {RAW} has 0.6766 to 0.8568; the config differs",
            ],
        ),
    ],
)
@pytest.mark.slow
def test_fifty_steps_are_enough_to_tell(
    mistake, nearest, told, prints, tmp_path, monkeypatch
):
    whole = order.train_batches

    def few(*given):
        yield from itertools.islice(whole(*given), 51)  # A loss is told one step late.
        raise Enough

    monkeypatch.setattr(order, "train_batches", few)
    with pytest.raises(Enough):
        loop.run(digits(**mistake), str(tmp_path))
    found, compared = examined(tmp_path, prints)
    assert nearest in compared and "but no loss" not in compared
    assert bool(found) == bool(told), found
    assert all(any(words in each for each in found) for words in told), found


@pytest.mark.slow
def test_a_teacher_without_a_trained_decoder_is_named(prints, tmp_path):
    """What a file without decoder gave the authors: one that was drawn at random."""
    whole = runs.small("generic_distill").teacher.model
    undone = runs.small("pretrain", model=whole, total_steps=1)
    loop.run(undone, str(tmp_path / "teacher"))
    config = runs.small("generic_distill", total_steps=2)
    config.teacher.checkpoint = str(tmp_path / "teacher")
    loop.run(config, str(tmp_path / "student"))
    (said, *_), _ = examined(tmp_path / "student", prints)
    assert said.startswith("the teacher reconstructs with an error of ")
    assert "has no trained decoder" in said


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("teacher/reconstruction_error", 0.95, "error of 0.95 on normalised pixels"),
        ("teacher/reconstruction_error", 0.21, ""),
    ],
)
def test_a_generic_teacher_is_judged_by_its_error(key, value, told):
    sick = patient("generic_distill", [{"step": 0, key: value}])
    sick.config.teacher.checkpoint = "runs/teacher"
    assert told in "".join(doctor.teacher(sick))
    assert bool(doctor.teacher(sick)) == bool(told)


ACCURACY = "teacher/accuracy_of_all_pixels_of_first_batch"


@pytest.mark.parametrize(
    ("row", "sick"),
    [
        # One class for every pixel, whichever it is: as good by chance.
        ({ACCURACY: 40.0, f"{ACCURACY}_by_chance": 40.0}, True),
        ({ACCURACY: 90.0, f"{ACCURACY}_by_chance": 90.0}, True),
        ({ACCURACY: 80.0, f"{ACCURACY}_by_chance": 28.0}, False),
        ({ACCURACY: 97.0, f"{ACCURACY}_by_chance": 85.0}, False),
        # A run from before chance was measured, of five classes.
        ({ACCURACY: 31.0}, True),
        ({ACCURACY: 60.0}, False),
    ],
)
def test_a_teacher_of_segmentation_is_compared_with_chance(row, sick):
    examined_run = patient("specific_seg", [{"step": 0, **row}])
    examined_run.config.teacher.checkpoint = "runs/{teacher}"
    sentences = doctor.teacher(examined_run)
    assert bool(sentences) == sick
    start = f"the teacher names {row[ACCURACY]:.1f} % of the pixels of the first batch"
    assert all(sentence.startswith(start) for sentence in sentences)
    assert all("runs/{teacher} has no trained" in sentence for sentence in sentences)


def test_a_teacher_of_segmentation_with_random_weights_is_told():
    config = runs.small("specific_seg")
    stage = stages.build(config)
    dataset = source.load(config, config.data.train_split, stage.reads)
    batches = order.train_batches(dataset, config.batch, config.seed)
    mesh = parallel.make_mesh(config.mesh)
    _, metrics = stages.frozen_variables(stage, config, next(iter(batches)), mesh)
    assert metrics.keys() == {ACCURACY, f"{ACCURACY}_by_chance"}
    config.teacher.checkpoint = "runs/teacher"
    row = {"step": 0, **metrics}
    assert doctor.teacher(doctor.Patient("runs/a", config, [row]))


def test_chance_is_the_accuracy_of_shuffled_answers():
    label_map = jnp.array([[[0, 0, 1], [2, 0, 255]]])
    # Class 0 has half of the pixels.
    one_class = jnp.zeros((1, 2, 3, 3)).at[..., 0].set(1.0)
    assert specific_seg.chance_agreement(one_class, label_map) == pytest.approx(1 / 2)
    right = jnp.eye(4)[jnp.where(label_map == 255, 0, label_map)]
    expected = (4 * 3 + 1 * 1 + 1 * 1) / 36  # Answers of each class times its pixels.
    assert specific_seg.chance_agreement(right, label_map) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "chance", "near"),
    [(62.0, 50.0, True), (63.0, 50.0, False), (0.19, 0.1, True), (0.21, 0.1, False)],
)
def test_twice_a_guess_is_enough_and_of_two_classes_a_quarter(value, chance, near):
    kind = dict(higher_is_better=True, unit="%")
    assert doctor.near_chance(value, chance, **kind) == near


def test_a_specific_teacher_is_judged_by_its_answers():
    for right, sick in ((39.0, True), (41.0, False)):  # Of five classes.
        row = {"step": 0, "teacher/top1_of_first_batch": right}
        seen = patient("specific_cls", [row])
        seen.config.teacher.checkpoint = "runs/teacher"
        assert bool(doctor.teacher(seen)) == sick
    untrained = patient("specific_cls")
    assert "random:0 is an untrained teacher" in doctor.teacher(untrained)[0]


@pytest.mark.parametrize(
    ("loss", "top1", "told"),
    [
        (1.6, None, "guessing among 5 classes costs ln(5) = 1.61: the labels have not"),
        (0.1, 21.0, "number their classes differently, or the labels are shuffled"),
        (0.1, 90.0, ""),
    ],
)
def test_shuffled_labels_are_told(loss, top1, told):
    rows = [{"step": step, "loss/xent": loss} for step in range(100, 200)]
    rows += [{"step": 200, "eval/top1": top1}] * (top1 is not None)
    said = doctor.labels(patient("finetune", rows, steps=200))
    assert told in "".join(said)
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("loss", "miou", "told"),
    [
        (1.6, None, "guessing among 5 classes costs ln(5) = 1.61: the labels have not"),
        (0.1, 14.0, "mIoU of the held-out ones is 14.0 %, little better than guessing"),
        (0.1, 60.0, ""),
    ],
)
def test_shuffled_label_maps_are_told(loss, miou, told):
    rows = [{"step": step, "loss/decode": loss} for step in range(100, 200)]
    rows += [{"step": 200, "eval/mIoU": miou}] * (miou is not None)
    sentences = doctor.labels(patient(runs.SEGMENTATION[0], rows, steps=200))
    assert told in "".join(sentences)
    assert bool(sentences) == bool(told)


def test_a_rate_is_compared_with_the_recipe_of_the_task():
    config = recipes.load("finetune:task=segmentation,model=b16")
    assert not doctor.rate(doctor.Patient("runs/a", config, []))
    config.batch = 64
    [sentence] = doctor.rate(doctor.Patient("runs/a", config, []))
    assert "the recipe's for a batch of 16; scaled with the batch it is" in sentence


@pytest.mark.parametrize(
    ("lr", "batch", "told"),
    [
        (2.4e-3, 256, "rate is the recipe's for a batch of 4096; scaled with the bat"),
        (1.5e-4, 4096, "the published base rate, which is per 256 examples; times"),
        (2.4e-3, 4096, ""),
        (1.5e-4, 256, ""),
    ],
)
def test_a_rate_that_was_not_scaled_is_told(lr, batch, told):
    config = recipes.load("pretrain", {"optim.lr": lr, "batch": batch})
    said = doctor.rate(doctor.Patient("runs/a", config, []))
    assert told in "".join(said)
    assert bool(said) == bool(told)
    if told:
        assert f"{1.5e-4 * batch / 256:.3g}." in said[0]


KNOWN = "pictures=650,classes=5,side=500,split=train+val,device=gpu,gflops=9e4,batch=64"
CHAINS = [name for name in recipes.names() if name.startswith("chains/")]
CHAINS += [
    f"chains/{n}:path=x,{KNOWN},student=ti16" for n in ("folder", "maps", "coco")
]


@pytest.mark.parametrize("spec", CHAINS)
def test_the_rates_of_our_own_chains_are_no_mistakes(spec, tmp_path):
    config = recipes.load(spec)
    workdir.write_json(tmp_path / finished.CHAIN, workdir.to_json_dict(config))
    for step in chains.plan(config, str(tmp_path)):
        said = doctor.rate(doctor.Patient(step.workdir, step.config, []))
        assert not said, f"{step.name}: {said}"


def test_no_rate_is_published_for_a_size_of_ones_own():
    config = fingerprint.config_of("chains/digits", "teacher")
    recipe = recipes.load("finetune:model=b16")
    assert (config.optim.lr, config.batch) == (recipe.optim.lr, 64)
    assert not doctor.rate(doctor.Patient("runs/a", config, []))


def test_a_rate_that_no_chain_set_is_looked_at_inside_of_one(tmp_path):
    steps = (("a", "pretrain:model=b16", {"batch": 256}),)
    chain_config = dict(recipes.load("chains/digits").to_dict(), steps=steps, rows=())
    config = workdir.to_json_dict(ConfigDict(chain_config))
    workdir.write_json(tmp_path / finished.CHAIN, config)
    config = recipes.load("pretrain:model=b16", {"batch": 256, "optim.lr": 2.4e-3})
    assert doctor.rate(doctor.Patient(str(tmp_path / "seed0/a"), config, []))


def test_published_values_of_imagenet(prints):
    config = open_keys.assume(recipes.load("generic_distill"))
    epoch = 1_281_167 // 4096
    stuck = [dict(step=11 * epoch, loss=0.2)]
    (said,), _ = fingerprint.compare(config, stuck, prints)
    assert said.startswith("loss is 0.2, and a healthy run has 0 to 0.1 after 10 epo")
    assert fingerprint.compare(config, [dict(step=epoch, loss=0.2)], prints)[0] == []
    healthy = [dict(step=11 * epoch, loss=0.03)]
    assert fingerprint.compare(config, healthy, prints)[0] == []


def test_every_fingerprint_is_of_a_step_that_exists(prints):
    for chain, each in prints["measured"].items():
        steps = {name for name, *_ in recipes.load(chain).steps}
        assert set(each["steps"]) == PARTLY.get(chain, steps)
        for step, found in each["steps"].items():
            config = fingerprint.config_of(chain, step)
            assert str(config.total_steps) in found["loss"]


def test_a_range_covers_the_seeds():
    logs = [[dict(step=50, loss=loss), dict(step=70, loss=1.0)] for loss in (3, 1)]
    assert fingerprint.ranges(logs) == {"loss": {"50": [1.0, 3.0], "70": [1.0, 1.0]}}
    outside = fingerprint.outside([dict(step=50, loss=3.8)], {50: (1.0, 3.0)})
    assert outside == [(50, 3.8, (1.0, 3.0))]
    assert not fingerprint.outside([dict(step=50, loss=3.7)], {50: (1.0, 3.0)})


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "is not the workdir of a run" in capsys.readouterr().err


def test_nothing_is_claimed_before_a_step_can_be_compared(prints):
    said, compared = fingerprint.compare(digits(), [dict(step=10, loss=9.0)], prints)
    assert not said
    assert compared == f"{STEP} is like it, but no loss of step 50 or so was logged"


def test_a_chain_is_recorded_as_the_range_of_its_seeds(tmp_path):
    steps = (("student", "finetune", {}),)
    config = json.dumps(workdir.to_json_dict(runs.small("finetune"))).encode()
    chain = dict(seeds=(3, 4), steps=steps, rows=(("ours", "student"),))
    workdir.write_json(
        tmp_path / finished.CHAIN, workdir.to_json_dict(ConfigDict(chain))
    )
    workdir.write_json(tmp_path / "environment.json", workdir.environment())
    for seed, loss in ((3, 0.5), (4, 0.75)):
        rows = [{"step": 50, "loss": loss}, {"step": 60, "eval/top1": 10 * loss}]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        run = {"metrics.jsonl": lines.encode(), "config.json": config}
        files.write(tmp_path / f"seed{seed}/student", run)
    out = tmp_path / "prints.json"
    assert cli.main(["doctor", str(tmp_path), f"--record={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["made"].startswith("seeds 3, 4 on ")
    ranges = {"loss": {"50": [0.5, 0.75]}, "eval/top1": {"60": [5.0, 7.5]}}
    assert found["steps"] == {"student": ranges}
