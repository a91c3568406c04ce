# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The central table on CIFAR-10: minutes to hours on one GPU.

    g2sd chain --config=chains/cifar10:path='DIR/cifar10_{split}.tar.gz' \\
        --workdir=runs/cifar10

The path is an .npz, a folder, or a tar per split with train/CLASS/*.jpg and
test/CLASS/*.jpg. The recipes are the published ones, scaled: patches of 4 on 32 x 32
pictures (64 patches), a teacher 384 wide, a student of 192, shorter runs.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import table

SHAPE = dict(size="custom", image_size=(32, 32), patch=4)
TEACHER = dict(SHAPE, width=384, depth=12, heads=6)
STUDENT = dict(SHAPE, width=192, depth=6, heads=3)
DECODERS = (
    dict(decoder="dec192d4b", dec_heads=6),
    dict(decoder="dec128d2b", dec_heads=4),
)
NOTE = (
    "The schedules were set once, by scaling the published ones to this set, and not "
    "tuned on its test images."
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, seeds=1, path="")
    shared = dict(
        batch=512,
        data=dict(
            path=args.path,
            eval_split="test",
            train_examples=50_000,
            classes=10,
            mean=(0.491, 0.482, 0.447),
            std=(0.247, 0.243, 0.262),
        ),
        log_every=100,
        eval_epochs=50.0,
        checkpoint=dict(every=2000, keep=1),
    )
    masked = dict(total_epochs=200.0, optim=dict(lr=1.5e-3, warmup_epochs=10.0))
    tuned = dict(total_epochs=100.0, optim=dict(lr=1e-3, warmup_epochs=5.0))
    teacher, student = (
        shape | decoder
        for shape, decoder in zip((TEACHER, STUDENT), DECODERS, strict=True)
    )
    generic = dict(teacher=dict(model=teacher), distill=dict(teacher_block=2))
    answers = dict(teacher=dict(model=TEACHER))
    changes = {
        "teacher_mae": masked | dict(model=teacher),
        "teacher": tuned | dict(model=TEACHER),
        "student_mae": masked | dict(model=student),
        "student_generic": masked | dict(model=student) | generic,
        "mae": tuned | dict(model=STUDENT),
        "mae_ms": tuned | dict(model=STUDENT) | answers,
        "g2sd_generic": tuned | dict(model=STUDENT),
        "g2sd": tuned | dict(model=STUDENT) | answers,
    }
    recipes = table.published(args, "custom", "custom", shared, changes)
    return table.chain(
        "Generic-to-specific distillation on CIFAR-10", NOTE, recipes, range(args.seeds)
    )
