# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs small enough for a test: every stage on fake 16 x 16 pictures."""

from g2sd_jax import recipes

MASKED = ("pretrain", "generic_distill", "dmae_distill")
STAGES = (*MASKED, "finetune", "specific_cls", "linprobe")

SMALL = dict(width=16, depth=2, heads=2, patch=4, image_size=(16, 16), mlp_ratio=2.0)
DECODER = dict(decoder="custom", dec_width=16, dec_depth=2, dec_heads=2)


def small(stage: str, **changes):
    """The smoke recipe of a stage, shrunk until a step takes milliseconds."""
    name, _, arguments = stage.partition(":")
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
    arguments = ",".join(filter(None, ["smoke", arguments]))
    config = recipes.load(f"{name}:{arguments}", overrides)
    with config.unlocked():
        for key, value in changes.items():
            config[key] = value
    return config
