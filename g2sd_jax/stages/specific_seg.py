# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Specific distillation for semantic segmentation (G2SD, stage 2).

On pictures without label maps (`config.data.labels=""`) the student learns the
teacher's answers alone.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from g2sd_jax import core, errors, tasks
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import layers, upernet, vit
from g2sd_jax.ops import label_maps, resize
from g2sd_jax.stages import finetune
from g2sd_jax.tasks import first_batch, segmentation, teachers
from g2sd_jax.weights import agreement, graft, loading, parts

NEEDS = ("task", "teacher", "distill")
DISTILLS = "specific"
TEACHER_ACCURACY = "teacher/accuracy_of_all_pixels_of_first_batch"
TEACHER_CHANCE = f"{TEACHER_ACCURACY}_by_chance"
LOSSES = {  # and the keys each reads
    "cwd": ("weight", "temperature"),
    "kl": ("weight", "temperature", "reduction"),
}


def build(config: ConfigDict) -> core.Stage:
    """Fine-tuning, and a fine-tuned teacher's logits on the same distorted crops."""
    distillation = config.distill
    kind = errors.one_of("config.distill.loss", distillation.loss, LOSSES)
    because = f"config.distill.loss={kind} (specific_seg:loss={kind} has them)"
    errors.require(distillation, "config.distill", LOSSES[kind], because)
    labelled = config.data.get("labels", "fake") != ""
    if kind == "kl":
        errors.one_of(
            "config.distill.reduction", distillation.reduction, distill.REDUCTIONS
        )
    task = tasks.build(config)
    # In inference mode: its own batch statistics, nothing dropped, no auxiliary head.
    teacher = upernet.segmentor(
        config.teacher.model,
        config.data.classes,
        "config.teacher.model",
        aux=False,
        **layers.compute_options(config),
    )
    backbone = teacher.backbone
    if (backbone.image_size, backbone.patch) != (
        tuple(config.model.image_size),
        vit.size(config.model).patch,
    ):
        raise ValueError(
            f"config.teacher.model sees {backbone.image_size} in patches of "
            f"{backbone.patch}, "
            f"config.model {tuple(config.model.image_size)} in patches of "
            f"{vit.size(config.model).patch}; their logits are compared pixel by pixel."
        )

    def loss(params, model_state, frozen, batch, draws, step):
        batch = task.augment(batch, draws)
        logits = teacher.apply(frozen, batch["image"], False).logits
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        terms = task.terms(outputs, batch) if labelled else {}
        terms = {**terms, kind: distilled(outputs.logits, logits)}
        return core.total(terms, model_state)

    def distilled(logits, teacher_logits):
        # At stride 4, before any enlargement.
        keys = dict(temperature=distillation.temperature)
        if kind == "cwd":
            return distillation.weight * distill.channel_wise(
                logits, teacher_logits, **keys
            )
        keys["reduction"] = distillation.reduction
        return distillation.weight * distill.class_wise(logits, teacher_logits, **keys)

    def frozen():
        model, where = config.teacher.model, "config.teacher.model"
        return graft.load_variables(
            config.teacher.checkpoint,
            fit,
            grid=vit.grid(model, where),
            rename=lambda weights: segmentation.rename_weights(
                weights, "teacher", model, where
            ),
            dropped=(segmentation.AUXILIARY,),
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights, config.data.classes)
            agreement.check_normalisation(weights, config, "config.teacher.checkpoint")
            agreement.check_epsilon(
                weights, config.teacher.model, "config.teacher.model"
            )
        if weights is not None and labelled:
            agreement.check_classes(weights, task.classes, "config.teacher.checkpoint")
        return lambda key: upernet.init(teacher, key)

    def probe(frozen, batch):
        eval_spec = label_maps.spec(config, train=False)
        batch = label_maps.prepare(batch, {}, eval_spec)
        logits = teacher.apply(frozen, batch["image"], False).logits
        accuracy = 100 * cross_entropy.pixel_accuracy(logits, batch["label_map"])
        by_chance = 100 * chance_agreement(logits, batch["label_map"])
        return {TEACHER_ACCURACY: accuracy, TEACHER_CHANCE: by_chance}

    def warning(accuracy):
        return (
            f"the teacher names {accuracy:.1f} % of the pixels of the first batch, "
            "little more than the same answers at shuffled pixels would: "
            f"{config.teacher.checkpoint} has no trained decode head, or numbers its "
            "classes differently (config.data.reduce_zero_label)."
        )

    chance = core.Chance(
        100 / config.data.classes,
        warning,
        higher_is_better=True,
        unit="%",
        metric=TEACHER_CHANCE,
    )
    stage = finetune.from_task(task)._replace(loss=loss, frozen=frozen)
    if labelled:
        return stage._replace(probe=probe, chance={TEACHER_ACCURACY: chance})
    return stage._replace(
        describe=teachers.with_class_names(stage.describe, config.teacher.checkpoint),
        chance={},
        evaluators={},
        summarise=functools.partial(first_batch.unlabelled_lines, ["decode", "aux"]),
        indivisible=None,  # Only the labels' loss may be.
    )


def chance_agreement(logits: jax.Array, label_map: jax.Array) -> jax.Array:
    """The pixel accuracy that shuffled answers would have (Cohen, 1960).

    One class for every pixel has exactly this accuracy, whichever class it is: answers
    that are not above it say nothing of the picture.

    Args:
        logits: [B, h, w, C], resized to the label maps.
        label_map: [B, H, W] classes; pixels of no class are wrong, as in the accuracy.
    """
    logits = resize.bilinear(logits, label_map.shape[1:])
    classes = jnp.arange(logits.shape[-1])[None, None, None]
    share = lambda labels: (labels[..., None] == classes).mean(axis=(0, 1, 2))
    return (share(logits.argmax(axis=-1)) * share(label_map)).sum()


def check_teacher(weights: loading.Weights, classes: int) -> None:
    """Refuses a file without decode head, or with another number of classes.

    Names of classes are compared by `agreement.check_classes`, but few files have them.
    """
    if not segmentation.has_head(weights):
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} holds {weights.summary()}. "
            "Specific distillation needs a fine-tuned segmentor: use the workdir of a "
            "finetune:task=segmentation run, or a published segmentation checkpoint."
        )
    trained = weights.classes(parts.PIXEL_HEAD)
    if trained != classes:
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} knows {trained} classes, "
            f"but config.data.classes={classes}: channel by channel, its logits would "
            "be taken for those of others. Use a teacher of these classes, or its "
            "classes (and its config.data.ignore and reduce_zero_label)."
        )
