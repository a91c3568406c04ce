# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The chain behind the paper's central table: a teacher, and a student four ways."""

from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from g2sd_jax.configs import common

# Step: the keys that tie it to earlier steps, whose workdirs stand in braces.
LINKS = {
    "teacher_mae": {},
    "teacher": {"init_from": "{teacher_mae}"},
    "student_mae": {},
    "student_generic": {"teacher.checkpoint": "{teacher_mae}"},
    "mae": {"init_from": "{student_mae}"},
    "mae_ms": {"init_from": "{student_mae}", "teacher.checkpoint": "{teacher}"},
    "g2sd_generic": {"init_from": "{student_generic}"},
    "g2sd": {"init_from": "{student_generic}", "teacher.checkpoint": "{teacher}"},
}


def from_teacher(path: str) -> dict[str, dict]:
    """`LINKS` of a chain whose teacher lies, already pre-trained, at `path`."""
    return {
        name: {
            key: path if value == "{teacher_mae}" else value
            for key, value in tied.items()
        }
        for name, tied in LINKS.items()
        if name != "teacher_mae"
    }


# Method of the report's table: the step that made it. The first is the teacher.
ROWS = (
    ("teacher", "teacher"),
    ("MAE", "mae"),
    ("MAE ms", "mae_ms"),
    ("G2SD w/o S.D", "g2sd_generic"),
    ("G2SD", "g2sd"),
)


def chain(
    title: str,
    note: str,
    recipes: Mapping[str, tuple[str, dict]],
    seeds: Iterable[int],
    links: Mapping[str, dict] = LINKS,
    rows: Sequence[tuple[str, str]] = ROWS,
) -> ConfigDict:
    """A chain config.

    Args:
        title: of the report.
        note: a paragraph of the report: what its numbers can and can not say.
        recipes: {step of `links`: ("recipe:arguments", overrides)}.
        seeds: fixed before anything is trained; none is chosen by its result.
        links: {step: the keys that tie it to earlier ones}, in the order they run.
        rows: of the report's table, the teacher first.
    """
    config = ConfigDict(dict(title=title, note=note, seeds=tuple(seeds), rows=rows))
    config.cache_dir = placeholder(str)  # Compiled programs; None: WORKDIR/cache.
    config.progress = True
    config.reconstructions = "teacher_mae"  # Whose guesses are drawn; "": no step's.
    config.steps = tuple(
        (name, recipes[name][0], {**recipes[name][1], **tied})
        for name, tied in links.items()
    )
    return config


# What a task's recipes are called, of a model and of two.
CLASSIFICATION = ("finetune:", "specific_cls:")


def segmentation(data: str) -> tuple[str, str]:
    """The recipes of semantic segmentation, on a set of `configs/segmentation.py`."""
    return f"finetune:task=segmentation,data={data},", f"specific_seg:data={data},"


def detection(data: str) -> tuple[str, str]:
    """The recipes of detection, on a set of `configs/detection.py`."""
    return f"finetune:task=detection,data={data},", f"specific_det:data={data},"


def published(
    args: ConfigDict,
    student: str,
    teacher: str,
    shared: dict,
    changes: Mapping[str, dict] | None = None,
    task: tuple[str, str] = CLASSIFICATION,
    small_teacher: Mapping[str, object] | None = None,
) -> dict[str, tuple[str, dict]]:
    """The published recipes as {step: (recipe, overrides)}.

    Args:
        args: the chain's arguments; `smoke` and `steps` go to every recipe, and with
            `smoke` the recipes' own small shapes and fake data stay.
        student: row of the sizes table.
        teacher: row of the sizes table.
        shared: overrides of every step, such as where the data are.
        changes: {step: further overrides}.
        task: `CLASSIFICATION`, or `segmentation` or `detection` of a set.
        small_teacher: further model keys of the fine-tuned teacher, with `smoke`.
    """
    finetune, specific = task
    both = f"student={student},teacher={teacher}"
    recipes = {
        "teacher_mae": f"pretrain:model={teacher}",
        "teacher": f"{finetune}model={teacher}",
        "student_mae": f"pretrain:model={student}",
        "student_generic": f"generic_distill:{both}",
        "mae": f"{finetune}model={student}",
        "mae_ms": f"{specific}{both}",
        "g2sd_generic": f"{finetune}model={student}",
        "g2sd": f"{specific}{both}",
    }
    changes = changes or {}
    short = ",smoke" * args.smoke + f",steps={args.steps}" * bool(args.steps)
    if args.smoke:
        # The teacher is trained as large as its students' recipes shrink it to.
        encoder = dict(model=common.SMALL_TEACHER_SIZE)
        teacher = dict(model=common.SMALL_TEACHER_SIZE | dict(small_teacher or {}))
        shared, changes = {}, dict(teacher_mae=encoder, teacher=teacher)
        recipes = {
            name: recipe.replace("custom", "b16") for name, recipe in recipes.items()
        }
    return {
        name: (recipe + short, {**shared, **changes.get(name, {})})
        for name, recipe in recipes.items()
    }
