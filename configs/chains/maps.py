# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The whole method on your own label maps: a class for every pixel.

    g2sd chain --config=chains/maps:path=DIR --workdir=runs/mine

DIR is a folder, or a tar for each split (`city_{split}.tar`), of pictures and of label
maps, which are PNGs of the same names with the number of a class in every pixel; 255 is
no class. Usual layouts are recognised: images/ and labels/ (or masks/, annotations/) of
files, or of train/ and val/; train/images/ and train/labels/; train/ and trainannot/.
Others are named. Arguments:

    images={split}/*.jpg         where the pictures are, and
    labels={split}annot/*.png    their maps; * is the same for both
    ignore=0+11    labels that are no class; with 0, the others count one less
    names=FILE     names of the classes, a line each, in the order of the labels
    student=64x4   width x depth of the student, or a named size such as ti16
    teacher=128x6  of the teacher, which the chain trains first; or a workdir or a file
                   of a plain ViT: that one is fine-tuned only
    image=96       side of the windows that the networks see, a multiple of 32
    epochs=100     of the masked stages; the others take half of it
    rows=all       g2sd: the teacher and both stages, without the comparisons; ends: the
                   teacher, the MAE student and the one of both stages
    batch=64       examples of a step of the masked stages; the others take a quarter
    seeds=1        runs of the whole chain
    hours=1        that all of it may take, where `epochs` is not given

The arguments below `hours` are measured and counted by `g2sd chain` where they are not
given: the number of pictures and classes, how they are split, the shorter side of most,
the device and its speed in GFLOP/s; what the teacher's file says of it.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs.chains import own, table

SIZES = {"cpu": (12, 8, "128x6", "64x4"), "accelerator": (24, 16, "384x12", "192x12")}
MARGIN = 1.25  # Shorter side of a picture over that of a window, where it has as much.


def get_config(arguments: str = "") -> ConfigDict:
    return own.chain(arguments, LABELS, ignore="", names="")


def data(plan: own.Plan) -> dict:
    """`config.data` of the stages with labels."""
    args = plan.args
    try:
        ignored = {int(label) for label in args.ignore.split("+") if label}
    except ValueError:
        raise ValueError(
            f"recipe argument ignore={args.ignore!r}: write stored labels as numbers "
            "with a + between them, such as 0+11"
        ) from None
    return own.splits(plan) | dict(
        path=args.path,
        images=args.images,
        labels=args.labels,
        ignore=tuple(sorted(ignored - {0})),
        reduce_zero_label=0 in ignored,
        class_list=args.names,
        classes=args.classes,
        train_examples=args.pictures,
    )


def pictures(plan: own.Plan) -> dict:
    """`config.data` of the stages without labels."""
    return own.picture_folder(plan, plan.args.images.rpartition("/")[0])


def heads(plan: own.Plan, width: int) -> float:
    """FLOPs of UperNet's products for a window, most of them on its finest map."""
    channels = head_width(plan, width)
    return 2 * 9 * 6 * channels**2 * (plan.window / 4) ** 2


def head_width(plan: own.Plan, width: int) -> int:
    """Channels of the decode head on an encoder."""
    return max(32, width // 2) if plan.small else width


def model(plan: own.Plan, who: str) -> dict:
    """The model keys of a segmentor; the others follow from its sizes."""
    encoder = plan.teacher if who == "teacher" else plan.student
    width, _, _ = own.dimensions(encoder)
    return encoder | dict(
        image_size=(plan.window, plan.window),
        head_width=head_width(plan, width),
        drop_path=0.0 if plan.small else 0.1,
    )


def finetune(plan: own.Plan, who: str) -> tuple[str, dict]:
    """Recipe and overrides of a fine-tuning."""
    shorter = max(plan.window, min(round(MARGIN * plan.window), plan.args.side))
    fit = (shorter, 4 * shorter)
    return "finetune:task=segmentation,model=custom", dict(
        model=model(plan, who),
        batch=max(2, plan.batch // 4),
        total_steps=plan.args.steps or None,  # The recipe's own would go before epochs.
        eval_epochs=plan.tuned,
        augment=dict(fit=fit),
        inference=dict(fit=fit),
        optim=dict(layer_decay=0.9),
    )


def specific(plan: own.Plan) -> tuple[str, dict]:
    """Recipe and overrides of specific distillation, beside those of fine-tuning."""
    overrides = dict(teacher=dict(model=model(plan, "teacher")))
    return "specific_seg:student=custom,teacher=custom", overrides


LABELS = own.Labels(
    source="maps",
    title="Generic-to-specific distillation of segmentors on",
    recipes=table.segmentation("ade20k"),
    sizes=SIZES,
    data=data,
    pictures=pictures,
    finetune=finetune,
    specific=specific,
    heads=heads,
    facts=dict(images=("", "images/*"), labels=("", "labels/*")),
    patches=(8, 16),
)
