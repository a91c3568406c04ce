# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The method on road scenes, a class for every pixel: under an hour on two CPU cores.

    g2sd chain --config=chains/camvid:path='camvid_{split}.tar' --workdir=runs/camvid

`path` is CamVid's SegNet split, as `data=camvid` of the recipes reads it; the masked
stages take its photographs alone.

Photographs shrink to 120 x 160, a third of their sides, of which the networks see 96 x
96 in patches of 8: so a UperNet trains where no accelerator is.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import table

SHAPE = dict(size="custom", image_size=(96, 96), patch=8)
TEACHER = dict(SHAPE, width=128, depth=8, heads=4)
STUDENT = dict(SHAPE, width=64, depth=4, heads=2)
DECODERS = (
    dict(decoder="dec64d4b", dec_heads=2),
    dict(decoder="dec48d2b", dec_heads=2),
)
HEADS = (
    dict(taps=(1, 3, 5, 7), head_width=64, drop_path=0.0),
    dict(taps=(0, 1, 2, 3), head_width=32, drop_path=0.0),
)
EXAMPLES = 367
NOTE = (
    "Everything is scaled down: pictures to a third of their side, networks, crops, "
    "runs. The masked stages see CamVid's own 367 training pictures and no others, "
    "where the paper has ImageNet's 1.3 million."
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, seeds=1, path="")
    teacher, student = (
        shape | decoder
        for shape, decoder in zip((TEACHER, STUDENT), DECODERS, strict=True)
    )
    teacher_seg, student_seg = (
        shape | head for shape, head in zip((TEACHER, STUDENT), HEADS, strict=True)
    )
    shared = dict(compute_dtype="float32", scan=False, log_every=50)
    steps = lambda total: args.steps or total
    unlabelled = masked(args.path, steps(300))
    generic = dict(teacher=dict(model=teacher), distill=dict(teacher_block=2))
    learner = tuned(args.path, steps(600)) | dict(model=dict(student_seg, aux_width=32))
    answers = dict(teacher=dict(model=teacher_seg))
    changes = {
        "teacher_mae": masked(args.path, steps(400)) | dict(model=teacher),
        "teacher": tuned(args.path, steps(1000))
        | dict(model=dict(teacher_seg, aux_width=64)),
        "student_mae": unlabelled | dict(model=student),
        "student_generic": unlabelled | dict(model=student) | generic,
        "mae": learner,
        "mae_ms": learner | answers,
        "g2sd_generic": learner,
        "g2sd": learner | answers,
    }
    recipes = table.published(
        args, "custom", "custom", shared, changes, table.segmentation("camvid")
    )
    return table.chain(
        "Generic-to-specific distillation on CamVid", NOTE, recipes, range(args.seeds)
    )


def masked(path: str, steps: int) -> dict:
    """Overrides of the masked stages."""
    return dict(
        batch=32,
        total_steps=steps,
        data=dict(path=path, classes=0, train_examples=EXAMPLES),
        optim=dict(lr=1.5e-3, warmup_epochs=5.0),
        checkpoint=dict(every=200, keep=1),
    )


def tuned(path: str, steps: int) -> dict:
    """Overrides of the stages with labels, at a rate that suits small networks."""
    batch = 8
    epoch = EXAMPLES // batch
    sides = dict(fit=(120, 160))
    return dict(
        batch=batch,
        total_steps=steps,
        eval_epochs=300 / epoch,
        data=dict(path=path),
        augment=sides,
        inference=dict(sides, stride=(64, 64)),
        optim=dict(lr=1e-3, layer_decay=0.9, warmup_epochs=100 / epoch),
        checkpoint=dict(every=200, keep=1),
    )
