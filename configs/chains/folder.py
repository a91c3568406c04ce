# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The whole method on your own pictures: a teacher, and its student four ways.

    g2sd chain --config=chains/folder:path=DIR --workdir=runs/mine

DIR is a folder or a tar: of CLASS/*.jpg, of train/CLASS/*.jpg and val/CLASS/*.jpg, or
of pictures without classes, whose chain ends after generic distillation. Arguments:

    student=96x4   width x depth of the student, or a named size such as ti16
    teacher=192x6  of the teacher, which the chain trains first; or a workdir, a file, a
                   directory of timm or transformers: that one is fine-tuned only
    image=64       side of the pictures that the networks see
    epochs=100     of the masked stages; the others take half of it
    rows=all       or g2sd: the teacher and both stages, without the comparisons
    batch=64       examples of a step
    seeds=1        runs of the whole chain
    hours=1        that all of it may take, where `epochs` is not given

The arguments below `hours` are measured and counted by `g2sd chain` where they are not
given: the number of pictures and classes, how they are split, the shorter side of most,
the device and its speed in GFLOP/s; what the teacher's file says of it.
"""

import math
import re

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import table

# Arguments that are counted and measured where they have these values, and what
# stands for them until then.
FACTS = dict(pictures=0, classes=-1, side=0, split="", device="", gflops=0.0)
UNKNOWN = dict(
    pictures=1000, classes=10, side=64, split="hold_out", device="cpu", gflops=100.0
)
# The same of a teacher that is there already: autoencoder or encoder, its size, and
# what its pictures are normalised by (`0.5+0.5+0.5`; "" where its file does not say).
UNKNOWN_TEACHER = dict(
    teacher_kind="encoder",
    teacher_width=384,
    teacher_depth=12,
    teacher_patch=14,
    teacher_mean="",
    teacher_std="",
)
TEACHER_FACTS = {
    name: type(value)() if value else "?" for name, value in UNKNOWN_TEACHER.items()
}
HELD_OUT = 0.2  # Of pictures in no splits, the share that evaluates.
# Per device: patches along a side, side of a patch, teacher and student.
SIZES = {"cpu": (8, 8, "128x6", "64x4"), "accelerator": (14, 16, "384x12", "192x12")}
# Of the speed of large matrix products, what small networks reach in training.
EFFICIENCY = {"cpu": 0.35, "accelerator": 0.2}
COMPILING = 30.0  # Seconds a stage until its first step.
EPOCHS = (200.0, 100.0)  # Of the masked stages and of the others: where an hour lets.
MOST, LEAST = 4.0, 0.02  # How far that is stretched to fill the time, or cut.
ADAPTING = 0.2  # Share of the epochs that fine-tune a teacher that is there already.
ROWS = {
    "all": table.ROWS,
    "g2sd": (("teacher", "teacher"), table.ROWS[3], table.ROWS[4]),
}
# Whose features there are without labels.
UNLABELLED = ("teacher_mae", "student_mae", "student_generic")

NOTE = (
    "Lengths and sizes were derived from the number of pictures and the speed of the "
    "machine, before anything was trained; none was chosen by its result."
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(
        arguments,
        path="",
        student="",
        teacher="",
        image=0,
        epochs=0.0,
        rows="all",
        batch=0,
        seeds=1,
        hours=1.0,
        **FACTS,
        **TEACHER_FACTS,
    )
    pretrained = is_path(args.teacher)
    facts = FACTS | (TEACHER_FACTS if pretrained else {})
    missing = [name for name, absent in facts.items() if args[name] == absent]
    for name in missing:
        args[name] = (UNKNOWN | UNKNOWN_TEACHER)[name]
    if args.rows not in ROWS:
        raise ValueError(
            f"recipe argument rows={args.rows!r} is not known; known: all, g2sd"
        )
    device = "cpu" if args.device == "cpu" else "accelerator"
    teacher, student = models(args, device)
    links = table.LINKS
    if pretrained:
        links = table.from_teacher(args.teacher)
    rows = ROWS[args.rows] if args.classes else ()
    names = needed(rows, links) if rows else [n for n in UNLABELLED if n in links]
    batch = args.batch or min(256, max(8, 2 ** (args.pictures // 20).bit_length()))
    masked, tuned = lengths(args, device, names, teacher, student)
    recipes = steps(args, device, names, teacher, student, batch, masked, tuned)
    if args.smoke:
        recipes = table.published(args, "custom", "custom", {})
    elif args.steps:
        recipes = {
            name: (f"{recipe},steps={args.steps}", overrides)
            for name, (recipe, overrides) in recipes.items()
        }
    config = table.chain(
        f"Generic-to-specific distillation on {args.path or 'a folder'}",
        NOTE,
        recipes,
        range(args.seeds),
        links={name: links[name] for name in names},
        rows=rows,
    )
    if "teacher_mae" not in names:
        config.reconstructions = "student_mae" if "student_mae" in names else ""
    if missing and not args.smoke:
        teacher = args.teacher if pretrained else ""
        config.survey = ConfigDict(
            dict(path=args.path, teacher=teacher, facts=tuple(missing))
        )
    config.epochs = ConfigDict(dict(masked=masked, tuned=tuned))
    return config


def is_path(teacher: str) -> bool:
    """Whether the argument `teacher` names weights and not a size."""
    return bool(teacher) and teacher not in NAMED and not SHAPE.fullmatch(teacher)


def needed(rows: tuple, links: dict[str, dict]) -> tuple[str, ...]:
    """The steps behind the rows of a table, in the order they run."""
    names = {step for _, step in rows}
    while True:
        values = [str(links[name]) for name in names]
        more = {name for name in links if any(f"{{{name}}}" in v for v in values)}
        if more <= names:
            return tuple(name for name in links if name in names)
        names |= more


def models(args: ConfigDict, device: str) -> tuple[dict, dict]:
    """The model keys of teacher and student; of a teacher that is there, its size."""
    grid, patch, teacher, student = SIZES[device]
    pretrained = is_path(args.teacher)
    if pretrained:
        patch = args.teacher_patch
    side = args.image or min(grid * patch, args.side)
    if not pretrained and side < grid * patch:
        patch = 4 if side < 48 else 8 if side < 160 else 16
    student = shape(args.student or student, patch)
    if pretrained:
        teacher = dict(size="file", width=args.teacher_width, depth=args.teacher_depth)
        teacher["patch"] = patch
    else:
        teacher = shape(args.teacher or teacher, patch)
    # Both look at the same pictures.
    patches = {dimensions(model)[2] for model in (teacher, student)}
    multiple = math.lcm(*patches)
    side = max(multiple, side - side % multiple)
    return tuple(model | dict(image_size=(side, side)) for model in (teacher, student))


SHAPE = re.compile(r"(\d+)x(\d+)")


def shape(text: str, patch: int) -> dict:
    """The model keys of `192x6`, or of a named size such as `ti16`."""
    match = SHAPE.fullmatch(text)
    if not match:
        return dict(size=text)
    width, depth = map(int, match.groups())
    heads = max(1, width // 64 if width > 192 else width // 32)
    return dict(size="custom", width=width, depth=depth, heads=heads, patch=patch)


def lengths(
    args: ConfigDict, device: str, names: tuple, teacher: dict, student: dict
) -> tuple[float, float]:
    """Epochs of the masked stages, and of the others, that end within `args.hours`."""
    if args.epochs:
        return args.epochs, args.epochs / 2
    products = {
        name: EPOCHS[name not in UNLABELLED] * forward(name, teacher, student)
        for name in names
    }
    rate = args.gflops * 1e9 * EFFICIENCY[device]
    seconds = args.seeds * args.pictures * sum(products.values()) / rate
    left = 0.8 * args.hours * 3600 - COMPILING * len(names) * min(args.seeds, 2)
    stretch = min(MOST, max(LEAST, left / seconds))
    return tuple(max(1.0, round(stretch * epochs, 1)) for epochs in EPOCHS)


def forward(name: str, teacher: dict, student: dict) -> float:
    """FLOPs of a step's products per picture: a backward pass counts twice."""
    full = {"teacher": products(teacher), "student": products(student)}
    own = full["teacher" if name.startswith("teacher") else "student"]
    pretrained = teacher["size"] == "file"
    if name in UNLABELLED:  # A quarter of the patches, and a decoder for all.
        # A teacher that is there may be an encoder, which sees the full picture.
        share = 1.0 if pretrained else 0.5
        guidance = share * full["teacher"] if name == "student_generic" else 0.0
        return 3 * 0.6 * own + guidance
    if pretrained and name == "teacher":
        return ADAPTING * 3 * own
    return 3 * own + (full["teacher"] if name in ("mae_ms", "g2sd") else 0.0)


# Width, depth, patch of the named sizes.
NAMED = {
    "ti16": (192, 12, 16),
    "s16": (384, 12, 16),
    "b16": (768, 12, 16),
    "l16": (1024, 24, 16),
    "h14": (1280, 32, 14),
}


def dimensions(model: dict) -> tuple[int, int, int]:
    """Width, depth and side of a patch of a model's keys."""
    if "width" in model:
        return model["width"], model["depth"], model["patch"]
    if model["size"] not in NAMED:
        raise ValueError(
            f"{model['size']!r} is no size; write WIDTHxDEPTH, such as 96x4, or one of "
            f"{', '.join(NAMED)}"
        )
    return NAMED[model["size"]]


def products(model: dict) -> float:
    """FLOPs of an encoder's products for one picture."""
    width, depth, patch = dimensions(model)
    tokens = 1 + (model["image_size"][0] // patch) ** 2
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def steps(
    args: ConfigDict,
    device: str,
    names: tuple,
    teacher: dict,
    student: dict,
    batch: int,
    masked: float,
    tuned: float,
) -> dict[str, tuple[str, dict]]:
    """{step: (recipe, overrides)}."""
    data = dict(source="folder", path=args.path)
    if args.split == "hold_out":
        data["hold_out"] = HELD_OUT
    elif args.split != "none":
        data["train_split"], data["eval_split"] = args.split.split("+")
    for name in ("mean", "std"):  # One for all: teacher and student share pictures.
        if is_path(args.teacher) and args[f"teacher_{name}"]:
            data[name] = tuple(map(float, args[f"teacher_{name}"].split("+")))
    small = device == "cpu"
    shared = dict(
        batch=batch,
        data=data,
        compute_dtype="float32" if small else "bfloat16",
        scan=not small,
        checkpoint=dict(every=500, keep=1),
        eval_epochs=max(1.0, tuned / 4),
    )
    unlabelled = shared | dict(
        total_epochs=masked,
        eval_epochs=max(1.0, masked),
        optim=dict(lr=1.5e-3, warmup_epochs=masked / 20),
    )
    # Mixing, and erasing, suit runs that are many times longer.
    labelled = shared | dict(
        total_epochs=tuned,
        optim=dict(lr=1e-3, warmup_epochs=tuned / 20),
        augment=dict(
            crop_area=(0.25, 1.0), randaugment="", erase=0.0, mixup=0.0, cutmix=0.0
        ),
    )
    # A fresh distillation token learns too little in so few steps.
    answers = dict(
        model=student | dict(pool="avg", dist_token=False, readout="cls"),
        distill=dict(temperature=2.0),
    )
    generic, adapted = "generic_distill:student=custom", dict(model=teacher)
    finetune = "finetune:model=custom"
    if is_path(args.teacher):
        finetune = "finetune:model=file"
        adapted = dict(
            model=dict(image_size=teacher["image_size"]),
            total_epochs=max(1.0, ADAPTING * tuned),
            eval_epochs=max(1.0, ADAPTING * tuned),
            optim=dict(lr=1e-3, warmup_epochs=ADAPTING * tuned / 20),
        )
        if args.teacher_kind == "encoder":
            generic += ",target=encoder"
    specific = "specific_cls:student=custom,loss=soft"
    # Distillation reads the teacher's shape from its checkpoint.
    recipes = {
        "teacher_mae": ("pretrain:model=custom", dict(model=teacher)),
        "teacher": (finetune, adapted),
        "student_mae": ("pretrain:model=custom", dict(model=student)),
        "student_generic": (generic, dict(model=student)),
        "mae": ("finetune:model=custom", dict(model=student)),
        "mae_ms": (specific, answers),
        "g2sd_generic": ("finetune:model=custom", dict(model=student)),
        "g2sd": (specific, answers),
    }
    return {
        name: (recipes[name][0], own | recipes[name][1])
        for name in names
        for own in [unlabelled if name in UNLABELLED else labelled]
    }
