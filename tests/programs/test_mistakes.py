# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mistakes a user can make: one line with the field, the value and the way out."""

import numpy as np
import pytest
import safetensors.numpy

import runs
from g2sd_jax import cli, loop

SMALL = [f"--config.model.{key}={value}" for key, value in runs.SMALL.items()]
DECODER = [f"--config.model.{key}={value}" for key, value in runs.DECODER.items()]
MAE = [*SMALL, *DECODER]
DISTILL = ["--config=generic_distill:smoke", *MAE]


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `g2sd train` and returns the one line it was refused with."""

    def run(*arguments, workdir=None):
        workdir = workdir or tmp_path / "run"
        assert cli.main(["train", f"--workdir={workdir}", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run


PRETRAIN = ["--config=pretrain:smoke", *MAE]

CASES = {
    "misspelt key": (["--config.optim.lrr=1"], "config.optim.lr"),
    "wrong type": (["--config.batch=many"], "config.batch='many'"),
    "unknown stage": (["--config.stage=pretrian"], "pretrain"),
    "unknown size": (["--config.model.size=s17"], "s16"),
    "open size": (["--config.model.width=None"], "config.model.width"),
    "unknown decoder": (["--config.model.decoder=big"], "dec256d4b"),
    "heads": (["--config.model.heads=3"], "multiple of 3 heads"),
    "table width": (["--config.model.width=18"], "divisible by 4"),
    "patch": (["--config.model.patch=5"], "use (15, 15)"),
    "mask everything": (["--config.mask_ratio=1.0"], "config.mask_ratio=1.0"),
    "mask nothing": (["--config.mask_ratio=0.0"], "config.mask_ratio=0.0"),
    "mask ratio": (["--config.mask_ratio=0.999"], "between"),
    "target": (["--config.target=norm"], "normalised"),
    "mesh too large": (["--config.mesh.data=16"], "does not fit 8 devices"),
    "mesh of zeros": (["--config.mesh.fsdp=0"], "at least 1 or -1"),
    "mesh open twice": (["--config.mesh.fsdp=-1"], "one of them may be -1"),
    "batch": (["--config.batch=12"], "use 16"),
    "no batch": (["--config.batch=0"], "config.batch=0 must be"),
    "accumulate": (["--config.accumulate=3"], "config.accumulate=3; use 24"),
    "unknown source": (["--config.data.source=digit"], "digits"),
    "empty set": (["--config.data.limit=0"], "config.data.limit=0 must be"),
    "wrong count": (["--config.data.limit=40"], "--config.data.train_examples=40"),
    "short epoch": (
        ["--config.data.train_examples=8", "--config.accumulate=2"],
        "less than one config.batch=16",
    ),
    "no steps": (["--config.total_steps=0"], "config.total_steps=0 must be"),
    "mean": (["--config.data.mean=(0.5, 0.5)"], "config.data.mean"),
    "no path": (["--config.data.source=arrays"], "config.data.path"),
    "remat": (["--config.remat=all"], "config.remat"),
    "dtype": (["--config.compute_dtype=fp16"], "bfloat16"),
    "optimiser": (["--config.optim.name=adam"], "adamw"),
    "preset": (["--config.optim.preset=finetuning"], "finetune"),
    "schedule": (["--config.optim.schedule=cos"], "cosine"),
    "schedule keys": (["--config.optim.schedule=poly"], "config.optim.power"),
    "lars keys": (["--config.optim.name=lars"], "config.optim.momentum"),
    "preset keys": (["--config.optim.preset=finetune"], "config.optim.layer_decay"),
    "stage keys": (["--config.stage=finetune"], "config.task"),
    "rules": (["--config.optim.rules=(('(', {}),)"], "config.optim.rules"),
    "rule": (["--config.optim.rules=(('.*', {'lr': 1}),)"], "lr_scale"),
    "log": (["--config.log_every=0"], "config.log_every=0 must be"),
    "save": (["--config.checkpoint.every=0"], "config.checkpoint.every=0"),
    "seed": (["--config.seed=-1"], "config.seed=-1"),
    "one side": (["--config.model.image_size=(96,)"], "must be 2 numbers"),
    "one bound": (["--config.augment.crop_area=(0.2,)"], "must be 2 numbers"),
    "mixing": (["--config.augment.mixup=0.8"], "one picture at a time"),
    "neighbours": (["--config.data.classes=0"], "config.monitor.neighbours"),
    "policy": (["--config.nonfinite.policy=go"], "stop"),
}


@pytest.mark.parametrize("case", CASES)
def test_config(case, refused):
    arguments, expected = CASES[case]
    assert expected in refused(*PRETRAIN, *arguments)


TEACHER = {
    "empty": (["--config.teacher.checkpoint="], "random:SEED"),
    "missing": (["--config.teacher.checkpoint=no/such"], "does not exist"),
    "seed": (["--config.teacher.checkpoint=random:x"], "whole number"),
    "block": (["--config.distill.teacher_block=9"], "choose 1 to 4"),
    "tokens": (["--config.distill.tokens=some"], "visible"),
    "no term": (["--config.distill.feature=0.0"], "give one a weight"),
    "groups": (
        ["--config.distill.relation=1.0", "--config.distill.relation_groups=5"],
        "divide both widths",
    ),
    "grids": (["--config.model.patch=8"], "same patches"),
}


@pytest.mark.parametrize("case", TEACHER)
def test_generic_distillation(case, refused):
    arguments, expected = TEACHER[case]
    # Teacher and student see 16 x 16 pictures in patches of 4 unless a case differs.
    teacher = [item.replace("config.model", "config.teacher.model") for item in MAE]
    teacher.append("--config.teacher.model.dec_depth=4")
    assert expected in refused(*DISTILL, *teacher, *arguments)


def distill_from(checkpoint):
    teacher = [item.replace("config.model", "config.teacher.model") for item in MAE]
    teacher.append("--config.distill.teacher_block=1")
    return [*DISTILL, *teacher, f"--config.teacher.checkpoint={checkpoint}"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    loop.run(runs.small("pretrain", total_steps=1), str(folder))
    return folder


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    loop.run(runs.small("finetune", total_steps=1), str(folder))
    return folder


def test_teacher_without_decoder(refused, finetuned):
    error = refused(*distill_from(finetuned))
    assert "no decoder" in error and "pretrain run" in error


def test_encoder_only_file(refused, tmp_path):
    arrays = {"cls_token": np.zeros((1, 1, 16), np.float32)}
    path = tmp_path / "mae_pretrain_vit_base.safetensors"
    safetensors.numpy.save_file(arrays, path)
    assert "no decoder" in refused(*distill_from(path))


def test_foreign_files(refused, tmp_path):
    for name in ("a.safetensors", "a.pickle"):
        path = tmp_path / name
        path.write_text("not a tensor")
        assert "safetensors" in refused(*distill_from(path))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a workdir" in refused(*distill_from(empty))


def test_teacher_of_another_shape(refused, pretrained):
    error = refused(*distill_from(pretrained), "--config.teacher.model.width=32")
    assert "another shape" in error and "config.teacher.model" in error


def test_teacher_of_another_target(refused, pretrained):
    error = refused(*distill_from(pretrained), "--config.teacher.target=raw")
    assert "set --config.teacher.target=normalised" in error


def test_specific_teacher_without_head(refused, pretrained):
    error = refused(
        "--config=specific_cls:smoke",
        *SMALL,
        *(item.replace("config.model", "config.teacher.model") for item in SMALL),
        f"--config.teacher.checkpoint={pretrained}",
    )
    assert "finetune run" in error


def test_specific_teacher_of_other_classes(refused, finetuned):
    error = refused(
        "--config=specific_cls:smoke",
        *SMALL,
        *(item.replace("config.model", "config.teacher.model") for item in SMALL),
        f"--config.teacher.checkpoint={finetuned}",
    )
    assert "head.weight is (5, 16), expected (10, 16)" in error


CLASSIFIER = {
    "pool": (["--config.model.pool=max"], "avg"),
    "readout": (["--config.model.readout=mean"], "config.model.dist_token=True"),
    "task": (["--config.task=classify"], "classification"),
    "no classes": (["--config.data.classes=0"], "config.data.classes=0"),
}


@pytest.mark.parametrize("case", CLASSIFIER)
def test_classifier(case, refused):
    arguments, expected = CLASSIFIER[case]
    assert expected in refused("--config=finetune:smoke", *SMALL, *arguments)


def test_label_outside_the_classes(refused, tmp_path):
    path = tmp_path / "set.npz"
    image = np.zeros((32, 16, 16, 3), np.uint8)
    np.savez(path, train_image=image, train_label=np.arange(32) % 11)
    error = refused(
        "--config=finetune:smoke",
        *SMALL,
        "--config.data.source=arrays",
        f"--config.data.path={path}",
        "--config.data.train_examples=32",
    )
    assert "config.data.classes=10" in error and "has 10" in error


def test_weights_of_another_normalisation(refused, finetuned):
    error = refused(
        "--config=specific_cls:smoke",
        *SMALL,
        *(item.replace("config.model", "config.teacher.model") for item in SMALL),
        f"--config.teacher.checkpoint={finetuned}",
        "--config.data.mean=(0.5,)",
    )
    assert "set --config.data.mean=0.485,0.456,0.406" in error


def test_keys_of_another_loss(refused):
    error = refused("--config=specific_cls:smoke", "--config.distill.loss=soft")
    assert "config.distill.beta" in error and "specific_cls:loss=soft" in error


def test_the_teacher_is_called_the_teacher(refused):
    error = refused("--config=specific_cls:smoke", "--config.teacher.model.size=b17")
    assert "config.teacher.model.size='b17'" in error


def test_workdir_of_another_config(refused, pretrained):
    error = refused(*PRETRAIN, "--config.seed=7", workdir=pretrained)
    assert "config.seed was 0, now 7" in error


def test_hard_labels_need_a_distillation_token(refused):
    error = refused(
        "--config=specific_cls:smoke",
        "--config.model.dist_token=False",
        "--config.model.readout=cls",
    )
    assert "loss=soft" in error
