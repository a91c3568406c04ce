# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The whole method on your own pictures: a teacher, and its student four ways.

    g2sd chain --config=chains/folder:path=DIR --workdir=runs/mine

DIR is a folder or a tar: of CLASS/*.jpg, of train/CLASS/*.jpg and val/CLASS/*.jpg, or
of pictures without classes, whose chain ends after generic distillation; if there is
val/CLASS/*.jpg beside train/*.jpg, it judges the features. Arguments:

    student=96x4   width x depth of the student, or a named size such as ti16
    teacher=192x6  of the teacher, which the chain trains first; or a workdir, a file, a
                   directory of timm or transformers: that one is fine-tuned only
    image=64       side of the pictures that the networks see
    epochs=100     of the masked stages; the others take half of it
    rows=all       g2sd: the teacher and both stages, without the comparisons; ends: the
                   teacher, the MAE student and the one of both stages
    batch=64       examples of a step
    seeds=1        runs of the whole chain
    hours=1        that all of it may take, where `epochs` is not given

The arguments below `hours` are measured and counted by `g2sd chain` where they are not
given: the number of pictures and classes, how they are split, the shorter side of most,
the classes that judge pictures without, the device and its speed in GFLOP/s; what the
teacher's file says of it.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs.chains import own, table

SIZES = {"cpu": (8, 8, "128x6", "64x4"), "accelerator": (14, 16, "384x12", "192x12")}


def get_config(arguments: str = "") -> ConfigDict:
    return own.chain(arguments, LABELS)


def data(plan: own.Plan) -> dict:
    """`config.data` of every stage."""
    return dict(source="folder", path=plan.args.path) | own.splits(plan)


def finetune(plan: own.Plan, who: str) -> tuple[str, dict]:
    """Recipe and overrides of a fine-tuning."""
    # Mixing, and erasing, suit runs that are many times longer.
    augment = dict(
        crop_area=(0.25, 1.0), randaugment="", erase=0.0, mixup=0.0, cutmix=0.0
    )
    if who == "teacher" and plan.pretrained:  # Whatever kind of encoder it is.
        model = dict(image_size=plan.teacher["image_size"])
        return "finetune:model=file", dict(model=model, augment=augment)
    model = plan.teacher if who == "teacher" else plan.student
    return "finetune:model=custom", dict(model=model, augment=augment)


def specific(plan: own.Plan) -> tuple[str, dict]:
    """Recipe and overrides of specific distillation, beside those of fine-tuning."""
    # A fresh distillation token learns too little in so few steps.
    pooled = dict(pool="avg", dist_token=False, readout="cls")
    return "specific_cls:student=custom,loss=soft", dict(
        model=pooled, distill=dict(temperature=2.0)
    )


LABELS = own.Labels(
    source="folder",
    title="Generic-to-specific distillation on",
    recipes=table.CLASSIFICATION,
    sizes=SIZES,
    data=data,
    pictures=data,
    finetune=finetune,
    specific=specific,
    unlabelled=dict(judged=(-1, 0)),
)
