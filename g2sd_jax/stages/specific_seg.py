# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Specific distillation for semantic segmentation (G2SD, stage 2)."""

from g2sd_jax import core, tasks
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import layers, upernet, vit
from g2sd_jax.ops import label_maps
from g2sd_jax.stages import finetune
from g2sd_jax.tasks import segmentation
from g2sd_jax.weights import agreement, graft, loading

NEEDS = ("task", "teacher", "distill")
LOSSES = {  # and the keys each reads
    "cwd": ("weight", "temperature"),
    "kl": ("weight", "temperature", "reduction"),
}


def build(config) -> core.Stage:
    """Fine-tuning, and a fine-tuned teacher's logits on the same distorted crops."""
    said = config.distill
    kind = core.one_of("config.distill.loss", said.loss, LOSSES)
    because = f"config.distill.loss={kind} (specific_seg:loss={kind} has them)"
    core.require(said, "config.distill", LOSSES[kind], because)
    if kind == "kl":
        core.one_of("config.distill.reduction", said.reduction, distill.REDUCTIONS)
    task = tasks.build(config)
    # In inference mode: its own batch statistics, nothing dropped, no auxiliary head.
    teacher = upernet.segmentor(
        config.teacher.model,
        config.data.classes,
        "config.teacher.model",
        aux=False,
        **layers.machine(config),
    )
    seen = teacher.backbone
    if (seen.image_size, seen.patch) != (
        tuple(config.model.image_size),
        vit.size(config.model).patch,
    ):
        raise ValueError(
            f"config.teacher.model sees {seen.image_size} in patches of {seen.patch}, "
            f"config.model {tuple(config.model.image_size)} in patches of "
            f"{vit.size(config.model).patch}; their logits are compared pixel by pixel."
        )

    def loss(params, model_state, frozen, batch, draws, step):
        batch = task.augment(batch, draws)
        logits = teacher.apply(frozen, batch["image"], False).logits
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        terms = {**task.terms(outputs, batch), kind: distilled(outputs.logits, logits)}
        return core.total(terms, model_state)

    def distilled(logits, teacher_logits):
        # At stride 4, before any enlargement.
        keys = dict(temperature=said.temperature)
        if kind == "cwd":
            return said.weight * distill.channel_wise(logits, teacher_logits, **keys)
        keys["reduction"] = said.reduction
        return said.weight * distill.class_wise(logits, teacher_logits, **keys)

    def frozen():
        model, where = config.teacher.model, "config.teacher.model"
        return graft.load_variables(
            config.teacher.checkpoint,
            fit,
            grid=vit.grid(model, where),
            rename=lambda weights: segmentation.renamed(
                weights, "teacher", model, where
            ),
            dropped=(segmentation.AUXILIARY,),
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights, config.data.classes)
            agreement.pictures(weights, config, "config.teacher.checkpoint")
            agreement.classes(weights, task.classes, "config.teacher.checkpoint")
        return lambda key: upernet.init(teacher, key)

    def probe(frozen, batch):
        plain = label_maps.spec(config, train=False)
        batch = label_maps.prepare(batch, {}, plain)
        logits = teacher.apply(frozen, batch["image"], False).logits
        accuracy = 100 * cross_entropy.pixel_accuracy(logits, batch["label_map"])
        return {"teacher/accuracy_of_all_pixels_of_first_batch": accuracy}

    return finetune.from_task(task)._replace(loss=loss, frozen=frozen, probe=probe)


def check_teacher(weights: loading.Weights, classes: int) -> None:
    """Refuses a file without decode head, whose logits would be those of random ones.

    And one that knows another number of classes than the data: names are compared by
    `agreement.classes`, but few files have them.
    """
    if not segmentation.has_head(weights):
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} holds {weights.summary()}. "
            "Specific distillation needs a fine-tuned segmentor: use the workdir of a "
            "finetune:task=segmentation run, or a published segmentation checkpoint."
        )
    known = len(weights.arrays[f"{loading.CONV_SEG}.weight"])
    if known != classes:
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} knows {known} classes, but "
            f"config.data.classes={classes}: channel by channel, its logits would be "
            "taken for those of others. Use a teacher of these classes, or its classes "
            "(and its config.data.ignore and reduce_zero_label)."
        )
