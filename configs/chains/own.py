# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the chains on your own pictures share, whatever their labels are.

`folder`, `maps` and `coco` say what their labels ask for, as `Labels`; sizes, lengths
and steps are derived here, from the facts that `g2sd chain` counts and measures.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import table

# Arguments that are counted and measured where they have the first value, and what
# stands for them until then.
FACTS = dict(
    pictures=(0, 1000),
    classes=(-1, 10),
    side=(0, 64),
    split=("", "hold_out"),
    device=("", "cpu"),
    gflops=(0.0, 100.0),
)
# The same of a teacher that is there already: autoencoder or encoder, its size, that of
# its pictures, and what these are normalised by (`0.5+0.5+0.5`; "" where its file does
# not say).
TEACHER_FACTS = dict(
    teacher_kind=("", "encoder"),
    teacher_width=(0, 384),
    teacher_depth=(0, 12),
    teacher_heads=(0, 6),
    teacher_patch=(0, 14),
    teacher_side=(0, 224),
    teacher_mean=("?", ""),
    teacher_std=("?", ""),
)
HELD_OUT = 0.2  # Of pictures in no splits, the share that evaluates.
# Of the speed of large matrix products, what small networks reach in training.
EFFICIENCY = {"cpu": 0.35, "accelerator": 0.2}
COMPILING = 30.0  # Seconds a stage until its first step.
EPOCHS = (200.0, 100.0)  # Of the masked stages and of the others: where an hour lets.
MOST, LEAST = 4.0, 0.02  # How far that is stretched to fill the time, or cut.
# Epochs, at most, and learning rate that fine-tune a teacher that is there already.
ADAPTED, ADAPTED_RATE = 5.0, 3e-4
ROWS = {
    "all": table.ROWS,
    "g2sd": (("teacher", "teacher"), table.ROWS[3], table.ROWS[4]),
    "ends": (("teacher", "teacher"), table.ROWS[1], table.ROWS[4]),
}
NEIGHBOURS = 5  # That vote on the class of a picture, where no class is trained on.
# Whose features there are without labels.
UNLABELLED = ("teacher_mae", "student_mae", "student_generic")

NOTE = (
    "Lengths and sizes were derived from the number of pictures and the speed of the "
    "machine, before anything was trained; none was chosen by its result."
)
# Width, depth, patch of the named sizes.
NAMED = {
    "ti16": (192, 12, 16),
    "s16": (384, 12, 16),
    "b16": (768, 12, 16),
    "l16": (1024, 24, 16),
    "h14": (1280, 32, 14),
}
# A smoke run with a teacher that is there already, whose size no recipe knows.
SMOKE_STEPS = 40
INVENTED = dict(source="fake", train_examples=256, classes=10)
SHAPE = re.compile(r"(\d+)x(\d+)")
TARS = (".tar", ".tar.gz", ".tgz")


class Plan(NamedTuple):
    """A chain's arguments, and what was derived of them."""

    args: ConfigDict
    device: str  # cpu, accelerator
    teacher: Mapping[str, Any]  # Model keys, as its masked stage has them.
    student: Mapping[str, Any]
    window: int  # Side of what the stages with labels see.
    batch: int  # Of the masked stages.
    masked: float  # Epochs of the masked stages,
    tuned: float  # of the others,
    adapted: float  # and of the fine-tuning of a teacher that is there already.

    @property
    def small(self) -> bool:
        """Whether there is no accelerator."""
        return self.device == "cpu"

    @property
    def pretrained(self) -> bool:
        """Whether the teacher is there already."""
        return is_path(self.args.teacher)


class Labels(NamedTuple):
    """What a chain has of its own."""

    source: str  # `config.data.source` of the stages with labels.
    title: str  # Of the report, before the path.
    recipes: tuple[str, str]  # Of fine-tuning and specific distillation, as in `table`.
    # By device: patches along a side, side of a patch, teacher and student.
    sizes: Mapping[str, tuple[int, int, str, str]]
    data: Callable[[Plan], dict]  # `config.data` of the stages with labels,
    pictures: Callable[[Plan], dict]  # and of those without.
    # (plan, "teacher" or "student") -> recipe and overrides of its fine-tuning.
    finetune: Callable[[Plan, str], tuple[str, dict]]
    specific: Callable[[Plan], tuple[str, dict]]  # The same of specific distillation.
    # (plan, width of an encoder) -> FLOPs of the heads' products for a picture.
    heads: Callable[[Plan, int], float] = lambda plan, width: 0.0
    facts: Mapping[str, tuple] = {}  # Beside `FACTS`,
    unlabelled: Mapping[str, tuple] = {}  # and what pictures without classes ask for.
    patches: tuple[int, ...] = ()  # Sides that the labels' stages take; (): any.
    masked_grid: Mapping[str, int] = {}  # Patches along a side there, by device.
    small_teacher: Mapping[str, Any] = {}  # What smoke changes of a teacher's model.


def chain(arguments: str, labels: Labels, **options: Any) -> ConfigDict:
    """The chain of some labels.

    Args:
        arguments: of the recipe.
        labels: what is particular to them.
        **options: further arguments of the recipe and their defaults.
    """
    facts = FACTS | labels.facts
    possible = facts | labels.unlabelled | TEACHER_FACTS
    absent = {name: value for name, (value, _) in possible.items()}
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
        **options,
        **absent,
    )
    pretrained = is_path(args.teacher)
    if args.classes < 1:
        facts |= labels.unlabelled
    if args.smoke:  # Nothing of the pictures is asked, for they are invented.
        facts = {}
    if args.smoke and pretrained:
        args.steps = args.steps or SMOKE_STEPS
    if pretrained:
        facts |= TEACHER_FACTS
    missing = [name for name in facts if args[name] == absent[name]]
    names = (*options, *labels.facts, "split")
    asked = {name: args[name] for name in names if isinstance(args[name], str)}
    for name, (value, instead) in possible.items():
        if args[name] == value:
            args[name] = instead
    if args.rows not in ROWS:
        raise ValueError(
            f"recipe argument rows={args.rows!r} is not known; known: {', '.join(ROWS)}"
        )
    links = table.from_teacher(args.teacher) if pretrained else table.LINKS
    rows = ROWS[args.rows] if args.classes else ()
    names = needed(rows, links) if rows else [n for n in UNLABELLED if n in links]
    plan = make_plan(args, labels, names)
    if args.smoke and not pretrained:
        recipes = table.published(
            args, "custom", "custom", {}, {}, labels.recipes, labels.small_teacher
        )
    else:
        recipes = steps(plan, labels, names)
    config = table.chain(
        f"{labels.title} {args.path or 'a folder'}",
        NOTE,
        recipes,
        range(args.seeds),
        links={name: links[name] for name in names},
        rows=rows,
    )
    if "teacher_mae" not in names:
        config.reconstructions = "student_mae" if "student_mae" in names else ""
    if missing:
        config.survey = ConfigDict(
            dict(
                source=labels.source,
                path=args.path,
                teacher=args.teacher if pretrained else "",
                facts=tuple(missing),
                options=asked,
            )
        )
    epochs = dict(masked=plan.masked, tuned=plan.tuned)
    if pretrained:
        epochs["adapted"] = plan.adapted  # The teacher's.
    config.epochs = ConfigDict(epochs)
    return config


def is_path(teacher: str) -> bool:
    """Whether the argument `teacher` names weights and not a size."""
    return bool(teacher) and teacher not in NAMED and not SHAPE.fullmatch(teacher)


def needed(rows: tuple, links: Mapping[str, dict]) -> tuple[str, ...]:
    """The steps behind the rows of a table, in the order they run."""
    names = {step for _, step in rows}
    while True:
        values = [str(links[name]) for name in names]
        more = {name for name in links if any(f"{{{name}}}" in v for v in values)}
        if more <= names:
            return tuple(name for name in links if name in names)
        names |= more


def make_plan(args: ConfigDict, labels: Labels, names: tuple[str, ...]) -> Plan:
    """Derives sizes and lengths.

    Args:
        args: of the chain, complete.
        labels: what is particular to them.
        names: of the steps.
    """
    device = "cpu" if args.device == "cpu" else "accelerator"
    teacher, student, window = models(args, labels, device)
    # A power of two, of at most 256, that makes some twenty steps of an epoch.
    batch = min(256, max(8, 2 ** (args.pictures // 20).bit_length()))
    batch = args.batch or min(batch, 2 ** (max(args.pictures, 1).bit_length() - 1))
    plan = Plan(args, device, teacher, student, window, batch, 1.0, 1.0, 1.0)
    return plan._replace(**lengths(plan, labels, names))


def models(
    args: ConfigDict, labels: Labels, device: str
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The model keys of teacher and student, and what the labels' stages see.

    Args:
        args: of the chain.
        labels: what is particular to them.
        device: cpu, accelerator.
    """
    grid, patch, teacher, student = labels.sizes[device]
    pretrained = is_path(args.teacher)
    if pretrained:
        patch = args.teacher_patch
        if labels.patches and patch not in labels.patches:
            patch = labels.patches[-1]
    side = args.image or min(grid * patch, args.side)
    if not pretrained and not labels.patches and side < grid * patch:
        patch = 4 if side < 48 else 8 if side < 160 else 16
    student = shape(args.student or student, patch)
    if pretrained:
        if labels.patches and args.teacher_heads < 1:
            raise ValueError(
                f"the weights at teacher={args.teacher!r} do not say their number of "
                "attention heads; add the argument teacher_heads=…"
            )
        teacher = dict(size="custom", width=args.teacher_width, patch=patch)
        teacher |= dict(depth=args.teacher_depth, heads=args.teacher_heads)
    else:
        teacher = shape(args.teacher or teacher, patch)
    # Both look at the same pictures.
    patches = {dimensions(model)[2] for model in (teacher, student)}
    multiple = math.lcm(*patches, 32 if labels.patches else 1)
    window = max(multiple, side - side % multiple)
    most = labels.masked_grid.get(device, 0) * patch
    side = min(window, most) if most else window
    if pretrained and args.teacher_kind == "autoencoder":
        # Its decoder knows no other grid of patches.
        side = args.teacher_side
        window = window if labels.patches else side
        check_autoencoder(args, patch, labels)
    size = dict(image_size=(side, side))
    return teacher | size, student | size, window


def check_autoencoder(args: ConfigDict, patch: int, labels: Labels) -> None:
    """Refuses arguments that a masked autoencoder as teacher does not go with.

    Args:
        args: of the chain.
        patch: that the student is to have.
        labels: what is particular to them.
    """
    side = args.teacher_side
    if side < 1:
        raise ValueError(
            f"the weights at teacher={args.teacher!r} do not say the side of square "
            "pictures that they are for; add the argument teacher_side=…"
        )
    if patch != args.teacher_patch:
        raise ValueError(
            f"teacher={args.teacher!r} is an autoencoder with patches of "
            f"{args.teacher_patch} pixels; these labels need patches of "
            f"{' or '.join(map(str, labels.patches))}, so name a teacher with those"
        )
    if args.image not in (0, side) and not labels.patches:
        raise ValueError(
            f"image={args.image}, but the autoencoder teacher={args.teacher!r} sees "
            f"pictures of {side} pixels, and so has the student to: leave image out"
        )


def shape(text: str, patch: int) -> dict[str, Any]:
    """The model keys of `192x6`, or of a named size such as `ti16`."""
    match = SHAPE.fullmatch(text)
    if not match:
        return dict(size=text)
    width, depth = map(int, match.groups())
    heads = max(1, width // 64 if width > 192 else width // 32)
    return dict(size="custom", width=width, depth=depth, heads=heads, patch=patch)


def lengths(plan: Plan, labels: Labels, names: tuple[str, ...]) -> dict[str, float]:
    """The epochs of a `Plan` that end within `hours`.

    A teacher that is there already is adapted first, in up to half of the time: what
    it has not learned of the labels nobody can learn from it.
    """
    args = plan.args
    if args.epochs:
        tuned = args.epochs / 2
        adapted = min(ADAPTED, max(1.0, tuned))
        return dict(masked=args.epochs, tuned=tuned, adapted=adapted)
    rate = args.gflops * 1e9 * EFFICIENCY[plan.device]
    seconds = {
        name: args.seeds * args.pictures * flops(plan, labels, name) / rate
        for name in names
    }
    left = 0.8 * args.hours * 3600 - COMPILING * len(names) * min(args.seeds, 2)
    adapted = 1.0
    if plan.pretrained and "teacher" in names:
        each = seconds.pop("teacher")
        adapted = min(ADAPTED, max(1.0, round(left / 2 / each, 1)))
        left -= adapted * each
    once = sum(s * EPOCHS[name not in UNLABELLED] for name, s in seconds.items())
    stretch = min(MOST, max(LEAST, left / once))
    masked, tuned = (max(1.0, round(stretch * epochs, 1)) for epochs in EPOCHS)
    return dict(masked=masked, tuned=tuned, adapted=adapted)


def flops(plan: Plan, labels: Labels, name: str) -> float:
    """FLOPs of a step's products per picture: a backward pass counts twice."""
    models = {"teacher": plan.teacher, "student": plan.student}
    who = "teacher" if name.startswith("teacher") else "student"
    if name in UNLABELLED:  # A quarter of the patches, and a decoder for all.
        encoders = {key: products(model) for key, model in models.items()}
        # A teacher that is there may be an encoder, which sees the full picture.
        share = 1.0 if plan.pretrained else 0.5
        guidance = share * encoders["teacher"] if name == "student_generic" else 0.0
        return 3 * 0.6 * encoders[who] + guidance
    full = {
        key: products(model, plan.window) + labels.heads(plan, dimensions(model)[0])
        for key, model in models.items()
    }
    return 3 * full[who] + (full["teacher"] if name in ("mae_ms", "g2sd") else 0.0)


def dimensions(model: Mapping[str, Any]) -> tuple[int, int, int]:
    """Width, depth and side of a patch of a model's keys."""
    if "width" in model:
        return model["width"], model["depth"], model["patch"]
    if model["size"] not in NAMED:
        raise ValueError(
            f"{model['size']!r} is no size; write WIDTHxDEPTH, such as 96x4, or one of "
            f"{', '.join(NAMED)}"
        )
    return NAMED[model["size"]]


def products(model: Mapping[str, Any], side: int = 0) -> float:
    """FLOPs of an encoder's products for one picture.

    Args:
        model: its keys.
        side: of the picture; 0: `image_size` of the model.
    """
    width, depth, patch = dimensions(model)
    tokens = 1 + ((side or model["image_size"][0]) // patch) ** 2
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def steps(
    plan: Plan, labels: Labels, names: tuple[str, ...]
) -> dict[str, tuple[str, dict]]:
    """{step: (recipe, overrides)}."""
    args, masked, tuned = plan.args, plan.masked, plan.tuned
    shared = dict(
        batch=plan.batch,
        data=normalisation(plan),
        compute_dtype="float32" if plan.small else "bfloat16",
        scan=not plan.small,
        checkpoint=dict(every=500, keep=1),
    )
    unlabelled = merge(
        shared,
        dict(
            data=labels.pictures(plan),
            total_epochs=masked,
            eval_epochs=max(1.0, masked),
            optim=dict(lr=1.5e-3, warmup_epochs=masked / 20),
        ),
    )
    if not args.classes and args.get("judged", 0) > 1:
        unlabelled["monitor"] = dict(neighbours=NEIGHBOURS)
    labelled = merge(
        shared,
        dict(
            data=labels.data(plan),
            total_epochs=tuned,
            eval_epochs=max(1.0, tuned / 4),
            optim=dict(lr=1e-3, warmup_epochs=tuned / 20),
        ),
    )
    generic = "generic_distill:student=custom"
    adapted = {}
    if plan.pretrained:
        adapted = dict(
            total_epochs=plan.adapted,
            eval_epochs=plan.adapted,
            optim=dict(lr=ADAPTED_RATE, warmup_epochs=plan.adapted / 10),
        )
        if args.teacher_kind == "encoder":
            generic += ",target=encoder"
    # Distillation reads a masked teacher's shape from its checkpoint.
    recipes = {
        "teacher_mae": ("pretrain:model=custom", dict(model=plan.teacher)),
        "student_mae": ("pretrain:model=custom", dict(model=plan.student)),
        "student_generic": (generic, dict(model=plan.student)),
    }
    recipes = {k: (recipe, merge(unlabelled, m)) for k, (recipe, m) in recipes.items()}
    learner, student = labels.finetune(plan, "student")
    finetune, teacher = labels.finetune(plan, "teacher")
    specific, answers = labels.specific(plan)
    student = merge(labelled, student)
    recipes |= {
        "teacher": (finetune, merge(labelled, teacher, adapted)),
        "mae": (learner, student),
        "mae_ms": (specific, merge(student, answers)),
        "g2sd_generic": (learner, student),
        "g2sd": (specific, merge(student, answers)),
    }
    short = f",steps={args.steps}" if args.steps else ""
    invented = dict(data=INVENTED, checkpoint=dict(every=5)) if args.smoke else {}
    return {
        name: (recipes[name][0] + short, merge(recipes[name][1], invented))
        for name in names
    }


def normalisation(plan: Plan) -> dict[str, tuple]:
    """Mean and standard deviation of a teacher that is there: of all its students."""
    if not plan.pretrained:
        return {}
    texts = {name: plan.args[f"teacher_{name}"] for name in ("mean", "std")}
    return {n: tuple(map(float, text.split("+"))) for n, text in texts.items() if text}


def splits(plan: Plan) -> dict[str, Any]:
    """The keys of `config.data` that say which pictures train and which evaluate."""
    if plan.args.split == "hold_out":
        return dict(hold_out=HELD_OUT)
    if plan.args.split == "none":
        return {}
    training, evaluation = plan.args.split.split("+")
    return dict(train_split=training, eval_split=evaluation)


def picture_folder(plan: Plan, pattern: str) -> dict[str, Any]:
    """`config.data` of the masked stages on the pictures that a pattern names.

    Args:
        plan: of the chain.
        pattern: folder of the pictures, or a tar of them, beneath `path`.
    """
    path = plan.args.path
    if not path.endswith(TARS):  # In a tar a split is looked for by its name.
        path = "/".join(filter(None, (path, pattern))).removesuffix("/{split}")
    return dict(source="folder", path=path, classes=0) | splits(plan)


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Nested overrides in one; of a key that several have, the last value."""
    merged = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if both else value
    return merged
