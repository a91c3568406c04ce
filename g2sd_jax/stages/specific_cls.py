# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Specific distillation for classification (G2SD, stage 2)."""

from g2sd_jax import core, tasks
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment
from g2sd_jax.stages import finetune
from g2sd_jax.weights import agreement, catalogue, graft, loading

NEEDS = ("task", "teacher", "distill")
LOSSES = {  # and the keys each reads
    "hard": ("weight",),
    "soft": ("beta", "temperature"),
    "nkd": ("alpha", "temperature"),
}


def build(config) -> core.Stage:
    """Fine-tuning with a fine-tuned teacher's answers to the same mixed images."""
    kind = core.one_of("config.distill.loss", config.distill.loss, LOSSES)
    because = f"config.distill.loss={kind} (specific_cls:loss={kind} has them)"
    core.require(config.distill, "config.distill", LOSSES[kind], because)
    task = tasks.build(config)
    # In inference mode: no noise is passed, so nothing of the teacher is dropped.
    teacher = vit.classifier(
        config.teacher.model,
        config.data.classes,
        "config.teacher.model",
        **layers.machine(config),
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
        seen = vit.read(teacher.apply(frozen, batch["image"]), "cls")
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        terms = task.terms(outputs, batch)
        return core.total(distilled(terms, outputs, seen, batch), model_state)

    def distilled(terms, outputs, seen, batch):
        said = config.distill
        if kind == "hard":
            # The published average: the labels through the class head, the teacher's
            # first answer through the distillation head.
            terms = {name: (1 - said.weight) * term for name, term in terms.items()}
            hard = distill.hard_label(outputs.dist_logits, seen)
            return {**terms, "hard": said.weight * hard}
        if kind == "soft":
            # The paper's equation: task loss plus beta times the distillation loss.
            answer = outputs.dist_logits if config.model.dist_token else outputs.logits
            kl = distill.soft_kl(answer, seen, temperature=said.temperature)
            return {**terms, "soft": said.beta * kl}
        label = batch["target"].argmax(axis=-1)
        nkd = distill.nkd(
            outputs.logits,
            seen,
            label,
            alpha=said.alpha,
            temperature=said.temperature,
        )
        return {"nkd": nkd}

    def frozen():
        return graft.load_variables(
            config.teacher.checkpoint, fit, grid=vit.grid(config.teacher.model)
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights)
            agreement.teacher(weights, config)
            agreement.classes(weights, task.classes, "config.teacher.checkpoint")
        return lambda key: vit.init(teacher, key)

    def probe(frozen, batch):
        spec = augment.spec(config, train=False)
        image = augment.prepare(batch, {}, spec)["image"]
        logits = vit.read(teacher.apply(frozen, image), "cls")
        accuracy = 100 * cross_entropy.accuracy(logits, batch["label"])
        return {"teacher/top1_of_first_batch": accuracy}

    return finetune.from_task(task)._replace(loss=loss, frozen=frozen, probe=probe)


def check_teacher(weights: loading.Weights) -> None:
    """Refuses a file without head: its answers would be those of random weights."""
    if "head.weight" not in weights.arrays:
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} holds {weights.summary()}. "
            "Specific distillation needs a fine-tuned teacher with its head: use the "
            "workdir of a finetune run or a fine-tuned file (published: "
            f"{catalogue.would_do('classifier', weights.size)})."
        )
