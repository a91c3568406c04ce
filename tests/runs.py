# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs small enough for a test: every stage on fake 16 x 16 pictures."""

from g2sd_jax import recipes

MASKED = ("pretrain", "generic_distill", "dmae_distill")
SEGMENTATION = ("finetune:task=segmentation", "specific_seg")
DETECTION = ("finetune:task=detection", "specific_det")
STAGES = (*MASKED, "finetune", "specific_cls", "linprobe")

SMALL = dict(width=16, depth=2, heads=2, patch=4, image_size=(16, 16), mlp_ratio=2.0)
DECODER = dict(decoder="custom", dec_width=16, dec_depth=2, dec_heads=2)


def small(stage: str, **changes):
    """The smoke recipe of a stage, shrunk until a step takes milliseconds."""
    name, _, arguments = stage.partition(":")
    if stage in SEGMENTATION:
        return segmentation(name, arguments, **changes)
    if stage in DETECTION:
        return detection(name, arguments, **changes)
    overrides = {
        "model": SMALL | (DECODER if name in MASKED else {}),
        "data": dict(train_examples=64, classes=5),
        "batch": 16,
        "total_steps": 6,
        "eval_epochs": 100.0,
        "checkpoint.every": 3,
        "first_batch_images": 0,  # One more program to compile.
        "progress": False,
        "optim.warmup_epochs": 0.0,
    }
    if name in ("finetune", "specific_cls"):  # Fifteen operations to compile.
        overrides["augment.randaugment"] = ""
    if name in MASKED:  # Each sign of progress is one more program to compile.
        overrides["monitor"] = dict(loss=False, neighbours=0)
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


def detection(name, arguments, **changes):
    """The same for canvases of 64 x 64 with at most four objects."""
    small = SMALL | dict(
        patch=16,
        image_size=(64, 64),
        pretrain_grid=(2, 2),
        window=3,
        global_blocks=(1,),
        features=8,
        box_bins=3,
        mask_bins=4,
    )
    heads = dict(head_width=8, head_convs=1, hidden=8)
    overrides = {
        "model": small | heads,
        "data": dict(train_examples=64, classes=5, max_boxes=4, mask_size=8),
        "batch": 16,
        "total_steps": 6,
        "eval_epochs": 100.0,
        "checkpoint.every": 3,
        "progress": False,
        "optim.warmup_epochs": 0.0,
        "anchors.count": 16,
        "proposals": dict(before=(20, 10), after=(12, 8)),
        "regions.count": 8,
        "loss.group": 2,
        "inference": dict(detections=5, candidates=20),
    }
    if name == "specific_det":
        overrides["model"] = small | heads | dict(adapter=12)
        overrides["teacher.model"] = small | dict(width=24, features=12)
    return changed(name, arguments, overrides, changes)


def changed(name, arguments, overrides, changes):
    arguments = ",".join(filter(None, ["smoke", arguments]))
    config = recipes.load(f"{name}:{arguments}", overrides)
    with config.unlocked():
        for key, value in changes.items():
            config[key] = value
    return config
