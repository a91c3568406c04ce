# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The whole method on your own objects: boxes and masks of a COCO json.

    g2sd chain --config=chains/coco:path=DIR --workdir=runs/mine

DIR is a folder of pictures, in folders or tars, and of a json for each split, or of one
json, of whose pictures a share is held out then. Usual layouts are recognised:
annotations/instances_train.json and images/train/; train.json and train/;
train/_annotations.coco.json; annotations.json and images/. Others are named. Arguments:

    images=photos/{split}        where the pictures are, and
    annotations={split}.json     the json
    student=64x4   width x depth of the student, or a named size such as ti16
    teacher=128x6  of the teacher, which the chain trains first; or a workdir or a file
                   of a plain ViT: that one is fine-tuned only
    image=256      side of the canvas that pictures are fitted into, a multiple of 32
    epochs=100     of the masked stages; the others take half of it
    rows=all       g2sd: the teacher and both stages, without the comparisons; ends: the
                   teacher, the MAE student and the one of both stages
    batch=64       examples of a step of the masked stages; the others take a quarter
    seeds=1        runs of the whole chain
    hours=1        that all of it may take, where `epochs` is not given

The arguments below `hours` are measured and counted by `g2sd chain` where they are not
given: the number of pictures, of classes and of objects in one picture, how they are
split, the longer side of most, the device and its speed in GFLOP/s; what the teacher's
file says of it.
"""

import math

from ml_collections import ConfigDict

from g2sd_jax.configs.chains import own, table

PATCH = 16  # A detector's levels are made of these.
SIZES = {
    "cpu": (16, PATCH, "128x6", "64x4"),
    "accelerator": (32, PATCH, "384x12", "192x12"),
}
PUBLISHED = 1024  # Side of the canvas that the published numbers are for.
# Channels of the pyramid, of the heads of regions, their convolutions, their linear
# layer, and the regions of a picture that they learn from.
HEADS = {"cpu": (32, 32, 1, 128, 64), "accelerator": (128, 128, 2, 512, 256)}
MOST_OBJECTS = 300  # Of a picture; of more a part is drawn.


def get_config(arguments: str = "") -> ConfigDict:
    return own.chain(arguments, LABELS)


def data(plan: own.Plan) -> dict:
    """`config.data` of the stages with labels."""
    args = plan.args
    return own.splits(plan) | dict(
        path=args.path,
        images=args.images,
        annotations=args.annotations,
        classes=args.classes,
        train_examples=args.pictures,
        max_boxes=min(max(1, args.objects), MOST_OBJECTS),
        surplus="sample",
        mask_size=56 if plan.window < PUBLISHED else 112,
    )


def pictures(plan: own.Plan) -> dict:
    """`config.data` of the stages without labels."""
    return own.picture_folder(plan, plan.args.images)


def heads(plan: own.Plan, width: int) -> float:
    """FLOPs of the products of pyramid, proposals and heads of regions."""
    features, channels, convs, hidden, count = HEADS[plan.device]
    cells = (plan.window / 4) ** 2 * 4 / 3
    maps = 2 * 9 * 2 * features**2 * cells + 8 * width**2 * cells / 4
    boxes = 49 * (2 * 9 * channels**2 * convs + 2 * channels * hidden)
    masks = 196 * 2 * 9 * channels**2 * (convs + 1) / 4  # Of a quarter of the regions.
    return maps + count * (boxes + masks)


def model(plan: own.Plan, who: str) -> dict:
    """The model keys of a detector but for its heads of regions."""
    encoder = plan.teacher if who == "teacher" else plan.student
    _, depth, _ = own.dimensions(encoder)
    side = plan.teacher["image_size"][0] // PATCH
    share = plan.window / PUBLISHED
    parts = (
        4 if depth >= 8 else 2
    )  # Of the blocks, each of which ends with a global one.
    return encoder | dict(
        image_size=(plan.window, plan.window),
        pretrain_grid=(side, side),
        window=max(2, plan.window // PATCH // 2),
        global_blocks=tuple(
            sorted({depth * i // parts - 1 for i in range(1, parts + 1)})
        ),
        drop_path=0.0 if plan.small else 0.1,
        features=HEADS[plan.device][0],
        anchor_sizes=tuple(round(share * size) for size in (32, 64, 128, 256, 512)),
        canonical_size=round(224 * share),
        roi_align="exact" if plan.small else "windows",
    )


def finetune(plan: own.Plan, who: str) -> tuple[str, dict]:
    """Recipe and overrides of a fine-tuning."""
    _, channels, convs, hidden, count = HEADS[plan.device]
    batch = max(2, plan.batch // 4)
    most = min(max(100, plan.args.objects), 1000)
    return "finetune:task=detection,model=custom", dict(
        model=model(plan, who)
        | dict(head_width=channels, head_convs=convs, hidden=hidden),
        batch=batch,
        total_steps=plan.args.steps or None,  # The recipe's own would go before epochs.
        eval_epochs=plan.tuned,
        augment=dict(scale=(0.5, 2.0)),
        proposals=dict(before=(500, 500), after=(250, 250)),
        regions=dict(count=count),
        inference=dict(detections=most, candidates=1000),
        loss=dict(group=math.gcd(batch, 8)),
        optim=dict(layer_decay=0.9),
    )


def specific(plan: own.Plan) -> tuple[str, dict]:
    """Recipe and overrides of specific distillation, beside those of fine-tuning."""
    steps = plan.tuned * plan.args.pictures / max(2, plan.batch // 4)
    return "specific_det:student=custom,teacher=custom", dict(
        model=dict(adapter=HEADS[plan.device][0]),
        teacher=dict(model=model(plan, "teacher") | dict(drop_path=0.0)),
        distill=dict(warmup_steps=min(500, round(steps / 10))),
    )


LABELS = own.Labels(
    source="coco",
    title="Generic-to-specific distillation of detectors on",
    recipes=table.detection("coco"),
    sizes=SIZES,
    data=data,
    pictures=pictures,
    finetune=finetune,
    specific=specific,
    heads=heads,
    facts=dict(
        images=("", "{split}2017"),
        annotations=("", "annotations/instances_{split}2017.json"),
        objects=(0, 100),
    ),
    patches=(PATCH,),
    masked_grid={"cpu": 16, "accelerator": 14},
    small_teacher=dict(global_blocks=(2, 5)),
)
