# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs small enough for a test: every stage on fake 16 x 16 pictures."""

from g2sd_jax import recipes

MASKED = ("pretrain", "generic_distill", "dmae_distill")
SEGMENTATION = ("finetune:task=segmentation", "specific_seg")
STAGES = (*MASKED, "finetune", "specific_cls", "linprobe")

# What two runs of the same numbers may differ in, row by row.
TIMES = {"images_per_sec", "step_ms", "input_wait", "input_bound"}
TIMES |= {"input_images_per_sec", "compute_images_per_sec"}

SMALL = dict(width=16, depth=2, heads=2, patch=4, image_size=(16, 16), mlp_ratio=2.0)
DECODER = dict(decoder="custom", dec_width=16, dec_depth=2, dec_heads=2)


def small(stage: str, **changes):
    """The smoke recipe of a stage, shrunk until a step takes milliseconds."""
    name, _, arguments = stage.partition(":")
    if stage in SEGMENTATION:
        return segmentation(name, arguments, **changes)
    overrides = {
        "model": SMALL | (DECODER if name in MASKED else {}),
        "data": dict(train_examples=64, classes=5),
        "batch": 16,
        "total_steps": 6,
        "eval_epochs": 100.0,
        "checkpoint.every": 3,
        "shown": 0,  # One more program to compile.
        "progress": False,
        "optim.warmup_epochs": 0.0,
    }
    if name in ("finetune", "specific_cls"):  # Fifteen operations to compile.
        overrides["augment.randaugment"] = ""
    if name in MASKED:  # Each sign of progress is one more program to compile.
        overrides["signal"] = dict(loss=False, neighbours=0)
    if name in ("generic_distill", "dmae_distill", "specific_cls"):
        teacher = SMALL | dict(width=24, depth=3)
        teacher |= DECODER if name in MASKED else {}
        overrides["teacher.model"] = teacher
    if name == "dmae_distill":
        overrides["distill"] = dict(student_blocks=(0, 1, 1), teacher_blocks=(0, 0, 1))
    if name == "generic_distill":
        overrides["distill.teacher_block"] = 1
    return changed(name, arguments, overrides, changes)


def segmentation(name, arguments, **changes):
    """The same for pictures of 64 x 64 in patches of 16, under label maps."""
    small = SMALL | dict(patch=16, image_size=(64, 64), taps=(0, 0, 1, 1))
    small |= dict(head_width=8)
    overrides = {
        "model": dict(small, aux_width=8),
        "data": dict(train_examples=64, classes=5),
        "batch": 16,
        "total_steps": 6,
        "eval_epochs": 100.0,
        "checkpoint.every": 3,
        "progress": False,
        "optim.warmup_epochs": 0.0,
        "inference": dict(fit=(64, 256), stride=(43, 43)),
    }
    if name == "specific_seg":
        overrides["teacher.model"] = small | dict(width=24, depth=3, taps=(0, 1, 1, 2))
    return changed(name, arguments, overrides, changes)


def changed(name, arguments, overrides, changes):
    arguments = ",".join(filter(None, ["smoke", arguments]))
    config = recipes.load(f"{name}:{arguments}", overrides)
    with config.unlocked():
        for key, value in changes.items():
            config[key] = value
    return config
