# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Specific distillation for classification (G2SD, stage 2).

On pictures without labels (`config.data.classes=0`) the student learns the teacher's
answers alone.
"""

import functools

import jax
from ml_collections import ConfigDict

from g2sd_jax import core, errors, tasks
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment
from g2sd_jax.stages import finetune
from g2sd_jax.tasks import first_batch, teachers
from g2sd_jax.weights import agreement, catalogue, graft, loading

NEEDS = ("task", "teacher", "distill")
DISTILLS = "specific"
TEACHER_TOP1 = "teacher/top1_of_first_batch"
LOSSES = {  # and the keys each reads
    "hard": ("weight",),
    "soft": ("beta", "temperature"),
    "nkd": ("alpha", "temperature"),
}


def build(config: ConfigDict) -> core.Stage:
    """Fine-tuning with a fine-tuned teacher's answers to the same mixed images."""
    kind = errors.one_of("config.distill.loss", config.distill.loss, LOSSES)
    because = f"config.distill.loss={kind} (specific_cls:loss={kind} has them)"
    errors.require(config.distill, "config.distill", LOSSES[kind], because)
    labelled = config.data.classes > 0
    task = tasks.build(config if labelled else of_teacher(config))
    # In inference mode: no noise is passed, so nothing of the teacher is dropped.
    teacher = vit.classifier(
        config.teacher.model,
        config.data.classes or config.distill.classes,
        "config.teacher.model",
        **layers.compute_options(config),
    )
    if teacher.image_size != tuple(config.model.image_size):
        raise ValueError(
            f"config.teacher.model.image_size={teacher.image_size}, but the student's "
            f"is {tuple(config.model.image_size)}; both look at the same images."
        )
    if kind == "hard" and not config.model.dist_token:
        raise ValueError(
            "config.distill.loss=hard is answered by the distillation head; set "
            "config.model.dist_token=True, or use specific_cls:loss=soft or loss=nkd."
        )

    def loss(params, model_state, frozen, batch, draws, step):
        batch = task.augment(batch, draws)
        with jax.named_scope("teacher"):
            answers = vit.read_logits(teacher.apply(frozen, batch["image"]), "cls")
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        terms = task.terms(outputs, batch) if labelled else {}
        return core.total(distilled(terms, outputs, answers, batch), model_state)

    def distilled(terms, outputs, answers, batch):
        distillation = config.distill
        if kind == "hard":
            # The published average: the labels through the class head, the teacher's
            # first answer through the distillation head.
            terms = {
                name: (1 - distillation.weight) * term for name, term in terms.items()
            }
            hard = distill.hard_label(outputs.dist_logits, answers)
            return {**terms, "hard": distillation.weight * hard}
        if kind == "soft":
            # The paper's equation: task loss plus beta times the distillation loss.
            student = outputs.dist_logits if config.model.dist_token else outputs.logits
            kl = distill.soft_kl(student, answers, temperature=distillation.temperature)
            return {**terms, "soft": distillation.beta * kl}
        label = batch["target"].argmax(axis=-1)
        nkd = distill.nkd(
            outputs.logits,
            answers,
            label,
            alpha=distillation.alpha,
            temperature=distillation.temperature,
        )
        return {"nkd": nkd}

    def frozen():
        return graft.load_variables(
            config.teacher.checkpoint, fit, grid=vit.grid(config.teacher.model)
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights)
            agreement.check_teacher(weights, config)
        if weights is not None and labelled:
            agreement.check_classes(weights, task.classes, "config.teacher.checkpoint")
        return lambda key: vit.init(teacher, key)

    def probe(frozen, batch):
        spec = augment.spec(config, train=False)
        image = augment.prepare(batch, {}, spec)["image"]
        logits = vit.read_logits(teacher.apply(frozen, image), "cls")
        accuracy = 100 * cross_entropy.accuracy(logits, batch["label"])
        return {TEACHER_TOP1: accuracy}

    def warning(top1):
        return (
            f"the teacher names {top1:.1f} % of the first batch, little more than "
            f"guessing among {teacher.classes} classes: "
            f"{config.teacher.checkpoint} has no trained head, or one of other classes."
        )

    chance = core.Chance(
        100 / teacher.classes, warning, higher_is_better=True, unit="%"
    )
    stage = finetune.from_task(task)._replace(loss=loss, frozen=frozen)
    if labelled:
        return stage._replace(probe=probe, chance={TEACHER_TOP1: chance})
    return stage._replace(
        describe=teachers.with_class_names(stage.describe, config.teacher.checkpoint),
        chance={},
        evaluators={},
        reads=(),
        summarise=functools.partial(first_batch.unlabelled_lines, ["xent"]),
    )


def of_teacher(config: ConfigDict) -> ConfigDict:
    """The config of a task with the teacher's classes, for data that have no labels."""
    distillation = config.distill
    if distillation.loss != "soft":
        raise ValueError(
            f"config.data.classes=0, but config.distill.loss={distillation.loss} takes "
            "labels; pictures without are learned from with "
            "specific_cls:loss=soft,labels=none."
        )
    if config.augment.mixup or config.augment.cutmix:
        raise ValueError(
            "config.data.classes=0: pictures without labels are not mixed; set "
            "config.augment.mixup=0.0 and config.augment.cutmix=0.0."
        )
    if config.model.dist_token and config.model.readout != "dist":
        raise ValueError(
            "config.data.classes=0: the class head of a student with a distillation "
            "token learns from labels alone; set config.model.dist_token=False."
        )
    if distillation.classes < 1:
        raise ValueError(
            "config.data.classes=0, and config.distill.classes=0 does not say how many "
            "classes the teacher knows; set config.distill.classes."
        )
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.data.classes = distillation.classes
    return changed


def check_teacher(weights: loading.Weights) -> None:
    """Refuses a file without head: its answers would be those of random weights."""
    if "head.weight" not in weights.arrays:
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} holds {weights.summary()}. "
            "Specific distillation needs a fine-tuned teacher with its head: use the "
            "workdir of a finetune run or a fine-tuned file (published: "
            f"{catalogue.suggestions('classifier', weights.size)})."
        )
