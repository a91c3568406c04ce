# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every numeric key has a range, and nothing outside of it is taken."""

import math
import random
from unittest import mock

import jax
import numpy as np
import pytest

import slow
from g2sd_jax import core, errors, loop, optim, parallel, recipes, stages, step
from g2sd_jax.configs import ranges

STAGES = [name for name in recipes.names() if not name.startswith("chains/")]
STAGES += ["finetune:task=segmentation", "finetune:task=segmentation,data=camvid"]
STAGES += ["generic_distill:target=encoder", "dmae_distill:paper=mae_lite"]
STAGES += ["finetune:task=detection"]
STAGES += ["specific_cls:loss=soft", "specific_cls:loss=nkd", "specific_seg:loss=kl"]
CHAINS = [name for name in recipes.names() if name.startswith("chains/")]
WITH_TEACHER = "chains/folder:teacher=file"  # One that is there has keys of its own.
SPELLED = {"optim.rules"}  # Checked entry by entry.
# Tuples that no recipe sets: from a weight file, from the depth of an encoder.
OF_FILES = {"model.variant.rotary_grid", "model.taps"}
# Keys of a recipe of one's own, which asks for them by the choice of another key.
CHOSEN = {
    f"optim.{key}"
    for choices in optim.EXTRA.values()
    for keys in choices.values()
    for key in keys
}


def numeric(config) -> dict:
    """{key: value} of all that hold numbers, or tuples in which numbers may be."""
    keys = {}
    for key, value in errors.flatten(config.to_dict()).items():
        *groups, leaf = key.split(".")
        group = config
        for name in groups:
            group = group[name]
        numbers = isinstance(value, tuple | list) and (
            not value or any(isinstance(item, int | float) for item in value)
        )
        if numbers or group.get_type(leaf) in (int, float):
            keys[key] = value
    return keys


@pytest.mark.parametrize("spec", [*STAGES, *CHAINS, WITH_TEACHER])
def test_every_numeric_key_has_a_range(spec):
    config = recipes.load(spec)
    stage = config.get("stage") or ""
    missing = [key for key in numeric(config) if ranges.find(key, stage) is None]
    missing = sorted(set(missing) - SPELLED)
    assert not missing, f"add a line to RANGES of configs/ranges.py for {missing}"


def test_every_range_is_of_a_key():
    keys = {
        name
        for spec in (*STAGES, *CHAINS, WITH_TEACHER)
        for key in numeric(recipes.load(spec))
        for name in (key, key.removeprefix("teacher."))
    }
    stale = {key.rpartition(" ")[2] for key in ranges.RANGES} - keys - CHOSEN - OF_FILES
    assert not stale


def test_a_key_of_ones_own_takes_a_line(monkeypatch):
    config = recipes.load("pretrain")
    with config.unlocked():
        config.gamma = 0.5
    assert "gamma" in numeric(config) and ranges.find("gamma") is None
    monkeypatch.setitem(ranges.RANGES, "gamma", ranges.SHARE)
    recipes.check_ranges(config)
    config.gamma = 1.5
    with pytest.raises(ValueError, match=r"^config\.gamma=1\.5 must be at least 0 and"):
        recipes.check_ranges(config)


SEGMENTATION = "finetune:task=segmentation"
WRONG = {  # key -> (recipe, values that trained, or ended in a traceback)
    "seed": ("pretrain", (-1, 99999999999999999999, 2**32)),
    "batch": ("pretrain", (0, -8)),
    "total_steps": ("pretrain", (0, -1, 2**31)),
    "log_every": ("pretrain", (0,)),
    "profile": ("pretrain", (("a", "b"), (3,), (3, 3), (5, 2), (0, 4))),
    "optim.clip": ("pretrain", (-1.0,)),
    "optim.lr": ("pretrain", (-1e-3, math.nan, math.inf)),
    "optim.eps": ("pretrain", (-1e-8, 0.0)),
    "optim.wd": ("pretrain", (-0.05,)),
    "optim.b1": ("pretrain", (1.5, 1.0, -0.1)),
    "optim.layer_decay": ("finetune", (-0.65, 0.0, 1.5)),
    "optim.rules": ("pretrain", ((("x", {"wd": -1.0}),), (("x", {"lr_scale": -1}),))),
    "augment.crop_area": ("pretrain", ((1.0, 0.2), (0.0, 1.0), (0.5, 2.0), (0.2,))),
    "augment.crop_aspect": ("pretrain", ((4 / 3, 3 / 4), (-1.0, 1.0), ())),
    "augment.crop_tries": ("pretrain", (0, -1)),
    "augment.smoothing": ("finetune", (2.0, 1.0, -0.1)),
    "augment.flip": ("finetune", (5.0, -0.5)),
    "augment.mixup": ("finetune", (-1.0,)),
    "augment.color_jitter": ("finetune", ((0.4, 0.4, 0.4, 0.6), (0.4,), (-1, 0, 0, 0))),
    "augment.scale": (SEGMENTATION, ((2.0, 0.5), (0.0, 1.0))),
    "data.mean": ("finetune", ((123.675, 116.28, 103.53), (), ("a",))),
    "data.std": ("finetune", ((0.2, 0.2, 0.0), (-0.2,), (58.395,))),
    "data.hold_out": ("finetune", (1.0, -0.1)),
    "data.canvas": ("finetune", (0.5, -1.0)),
    "data.eval_crop": ("finetune", (0.0, 1.5)),
    "data.workers": ("finetune", (0, -1)),
    "data.prefetch": ("finetune", (0, -1)),
    "data.timeout": ("finetune", (0.0,)),
    "eval_epochs": ("finetune", (0.0, -1.0)),
    "checkpoint.every": ("finetune", (0,)),
    "checkpoint.keep": ("finetune", (0,)),
    "augment.fit": (SEGMENTATION, ((48,), (0, 48))),
    "augment.crop_share": (SEGMENTATION, (0.0, 1.5)),
    "data.ignore": (SEGMENTATION, ((256,), (-1,), ("void",))),
    "mask_ratio": ("pretrain", (0.0, 1.0, -1.0, math.nan)),
    "model.drop_path": ("finetune", (1.5, 1.0)),
    "model.dropout": (SEGMENTATION, (1.0,)),
    "model.heads": ("finetune", (-2, 0)),
    "model.width": ("finetune", (10**12, 0)),
    "model.norm_eps": ("finetune", (0.0, -1e-6, 2.0)),
    "model.mlp_ratio": ("finetune", (0.0, -4.0, 1e9)),
    "model.decoder": ("pretrain", ("dec999999999999d8b", "dec512d99999b", "dec0d8b")),
    "model.pool_scales": (SEGMENTATION, ((0,), (), (-1, 2))),
    "model.taps": (SEGMENTATION, ((-1, 0, 1, 2), (0, 1, 2))),
    "teacher.model.heads": ("generic_distill", (-2,)),
    "teacher.model.norm_eps": ("specific_cls", (0.0,)),
    "inference.stride": (SEGMENTATION, ((0, 64), (64,))),
    "inference.scales": (SEGMENTATION, ((), (0.0,), (-1.0,))),
    "loss.auxiliary": (SEGMENTATION, (-0.4,)),
    "distill.relation_groups": ("generic_distill", (0, -1)),
    "distill.beta": ("generic_distill", (0.0, -1.0)),
    "distill.feature": ("generic_distill", (-1.0,)),
    "distill.weight": ("specific_cls", (1.5, -0.5)),
    "distill.temperature": ("specific_cls:loss=soft", (0.0, -1.0)),
}


@pytest.mark.parametrize("key", WRONG)
def test_numbers_that_no_run_can_have_are_refused(key):
    spec, values = WRONG[key]
    for value in values:
        with pytest.raises(ValueError, match=rf"^config\.{key}\b.* (must be|is not) "):
            recipes.load(spec, {key: value})


def test_the_weight_of_another_loss_may_be_larger():
    recipes.load("specific_seg", {"distill.weight": 10.0})
    recipes.load("specific_cls:loss=soft", {"distill.beta": 0.0})


def test_all_are_told_at_once():
    wrong = {"optim.lr": -1.0, "augment.crop_area": (0.9, 0.1), "model.heads": -2}
    with pytest.raises(ValueError) as error:
        recipes.load("pretrain", wrong)
    assert str(error.value) == (
        "config.augment.crop_area=(0.9, 0.1) must be 2 numbers, each above 0 and at "
        "most 1, in rising order or (); config.model.heads=-2 must be an integer at "
        "least 1; config.optim.lr=-1.0 must be at least 0"
    )
    with pytest.raises(ValueError) as error:
        recipes.load("pretrain", {"batch": "many", "optim.lrr": 1, "seed": -1})
    assert "config.batch='many'" in str(error.value)
    assert "config.seed=-1" in str(error.value)
    assert "config.optim.lrr is not a key" in str(error.value)
    with pytest.raises(ValueError, match=r"min_lr=0\.1 must be at most config\.optim"):
        recipes.load("pretrain", {"optim.min_lr": 0.1, "optim.lr": 0.01})


def test_a_run_of_a_program_is_checked_before_anything_is_built(tmp_path):
    config = recipes.load("pretrain:smoke")
    config.optim.clip = -1.0
    with pytest.raises(ValueError, match=r"^config\.optim\.clip=-1\.0 must be"):
        loop.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# What no key, or hardly any, takes.
WILD = (None, True, "x", "", "(", "nan", "-inf", "1e999", "9" * 5000, -1, 0, 0.5)
WILD += (1e12, 10**400, 99999999999999999999, math.nan, math.inf, -math.inf, -0.0)
WILD += ((), (0,), ("a", "b"), (1, 2, 3, 4, 5, 6), ((),), [0.5], b"x", 1j, object())


def inside(draw: random.Random, bounds: ranges.Range):
    """A value of the range, not far from its lower end."""
    if bounds.empty and draw.random() < 0.3:
        return ()
    count = 1 if bounds.lengths is None else draw.choice(bounds.lengths or (1, 2, 3))
    high = min(bounds.high, max(8 * bounds.low, bounds.low + 64))
    if bounds.integer:
        numbers = [draw.randint(int(bounds.low), int(high)) for _ in range(count)]
    else:
        numbers = [draw.uniform(bounds.low, high) for _ in range(count)]
    if bounds.order:
        numbers.sort()
    return numbers[0] if bounds.lengths is None else tuple(numbers)


def outside(draw: random.Random, bounds: ranges.Range):
    """A value that the range has not."""
    wrong = [bounds.low - 0.5, bounds.low - 10**6, math.nan, -math.inf, math.inf]
    wrong += [bounds.low] * bounds.above + [bounds.high] * bounds.below
    wrong += [bounds.high * 2 + 1] * math.isfinite(bounds.high)
    wrong = [number for number in wrong if number not in bounds.others]
    number = draw.choice(wrong)
    if bounds.integer and math.isfinite(number):
        number = draw.choice([int(bounds.low) - 7, int(bounds.high) + 1])
    if bounds.lengths is None:
        return number
    choices = [(number,) * max(bounds.lengths or (1,)), number]
    if bounds.lengths:
        choices.append((inside(draw, bounds._replace(lengths=None)),) * 300)
    value = inside(draw, bounds)
    if bounds.order and len(set(value)) > 1:
        choices.append(value[::-1])
    return draw.choice(choices)


def as_typed(draw: random.Random, value):
    """The value as a program gives it, or as a command line does."""
    return str(value) if draw.random() < 0.3 else value


def abstract(config) -> None:
    """Builds a config's stage, and the shapes of its state and of a step."""
    stage = stages.build(config)
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    parallel.check_batch(config, mesh)
    step.build(config, stage, mesh)
    count, shape = config.batch // config.accumulate, jax.ShapeDtypeStruct
    size, channels = tuple(config.model.image_size), config.model.channels
    batch = {"image": shape((count, *size, channels), np.uint8)}
    if "label" in stage.reads:
        batch["label"] = shape((count,), np.int32)
    if "label_map" in stage.reads:
        batch["label_map"] = shape((count, *size), np.uint8)
        batch["image_size"] = shape((count, 2), np.int32)
    if "boxes" in stage.reads:
        rows, side = (count, config.data.max_boxes), config.data.mask_size
        batch |= {
            "boxes": shape((*rows, 4), np.float32),
            "labels": shape(rows, np.int32),
            "valid_boxes": shape(rows, np.bool_),
            "masks": shape((*rows, side, side), np.uint8),
            "frames": shape((*rows, 4), np.float32),
            "size": shape((count, 2), np.int32),
        }
    key = jax.random.key(0)
    draws = jax.eval_shape(stage.draw, key, batch)
    variables = jax.eval_shape(stage.init, key)
    with mock.patch.object(jax, "device_get", core.identity):  # Of random weights.
        frozen = jax.eval_shape(lambda: stage.trim(stage.frozen()))
    params = variables.pop("params")
    jax.eval_shape(stage.loss, params, variables, frozen, batch, draws, 0)


def fuzz(spec: str, rounds: int, builds: int, seed: int = 0) -> dict[str, int]:
    """Loads a recipe with keys changed at random, and builds what is taken.

    Args:
        spec: of the recipe, in smoke form.
        rounds: how many configs.
        builds: how many of them are built at most, which takes a second each.
        seed: of the changes.

    Returns:
        {"refused", "built": how often}; of what was loaded, some is refused by what is
        built from it.
    Raises:
        AssertionError: a value outside of its range was taken.
        Exception: whatever is no ValueError, which a user would see as a traceback.
    """
    draw = random.Random(f"{spec} {seed}")
    smoke = f"{spec}{',' if ':' in spec else ':'}smoke"
    config = recipes.load(smoke)
    stage = config.get("stage") or ""
    bounds_of = {key: ranges.find(key, stage) for key in numeric(config)}
    bounds_of = {key: bounds for key, bounds in bounds_of.items() if bounds}
    outcomes = {"refused": 0, "built": 0}
    for _ in range(rounds):
        changes, wrong = {}, set()
        count = min(draw.choice((1, 1, 2, 4)), len(bounds_of))
        for key in draw.sample(sorted(bounds_of), count):
            kind = draw.choice(("inside", "inside", "outside", "wild"))
            bounds = bounds_of[key]
            value = draw.choice(WILD)
            if kind != "wild":
                value = (inside if kind == "inside" else outside)(draw, bounds)
                changes[key] = as_typed(draw, value)
            else:
                changes[key] = value
            if kind == "outside":
                wrong.add(key)
        try:
            config = recipes.load(smoke, changes)
        except ValueError as error:
            assert str(error)
            outcomes["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"{smoke} {changes}: a traceback") from error
        assert not wrong, f"{smoke} {changes}: {wrong} taken"
        for key, bounds in bounds_of.items():  # The wild ones that were taken, too.
            *groups, leaf = key.split(".")
            group = config
            for name in groups:
                group = group[name]
            assert group[leaf] is None or bounds.contains(group[leaf]), (key, changes)
        if not stage or outcomes["built"] == builds:
            continue
        try:
            abstract(config)
            outcomes["built"] += 1
        except ValueError as error:
            assert str(error)
        except Exception as error:
            raise AssertionError(f"{smoke} {changes}: a traceback") from error
    return outcomes


@pytest.mark.parametrize("spec", STAGES + CHAINS)
def test_fuzzed_configs_are_refused_or_built(spec):
    outcomes = fuzz(spec, rounds=60, builds=1)
    assert outcomes["refused"] > 10


@pytest.mark.parametrize("spec", slow.parameters(STAGES, quick=[]))
def test_more_fuzzed_configs(spec):
    outcomes = fuzz(spec, rounds=150, builds=6, seed=1)
    assert outcomes["refused"] > 20 and outcomes["built"] > 3
