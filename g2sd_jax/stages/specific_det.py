# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Specific distillation for detection (G2SD, stage 2): maps and objectness.

The heads of regions learn from the data alone, as published.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from g2sd_jax import core, errors, tasks
from g2sd_jax.losses import detector_distill
from g2sd_jax.models import detector, layers, vitdet
from g2sd_jax.ops import augment, canvases
from g2sd_jax.stages import finetune
from g2sd_jax.tasks import detection
from g2sd_jax.weights import agreement, detector_names, graft, loading

NEEDS = ("task", "teacher", "distill")
DISTILLS = "specific"
FORMS = ("logits", "probabilities")
TEACHER_CONTRAST = "teacher/objectness_on_objects_over_objectness_elsewhere"
# What the teacher's file holds for regions, and a student's adapter in its place.
UNUSED = (r"roi_heads\..*", detection.ADAPTER)


def build(config: ConfigDict) -> core.Stage:
    """Fine-tuning, and a trained teacher's maps and objectness on the same canvases."""
    errors.one_of("config.distill.form", config.distill.form, FORMS)
    task = tasks.build(config)
    options = layers.compute_options(config)
    adapter = config.model.adapter
    student = detector.detector(
        config.model, config.data.classes, adapter=adapter, **options
    )
    teacher = detector.detector(
        config.teacher.model,
        config.data.classes,
        "config.teacher.model",
        heads=False,
        **options,
    )
    check_pair(config)
    depth, rate = teacher.backbone.net.depth, teacher.backbone.net.drop_path

    def draw(key, batch):
        draws = task.draw(key, batch)
        if rate:
            keys = core.stream_keys(key, "teacher_drop_path")
            shape = (len(batch["image"]), depth, 2)
            noise = jax.random.uniform(keys["teacher_drop_path"], shape)
            draws["teacher_drop_path"] = noise
        return draws

    def look(frozen, image, noise=None):
        """The teacher's maps and logits of every level."""
        run = functools.partial(teacher.apply, frozen)
        maps = run(image, noise, method=teacher.features).maps
        return maps, run(maps, method=teacher.anchors)[0]

    def loss(params, model_state, frozen, batch, draws, step):
        batch = task.augment(batch, draws)
        answers = look(frozen, batch["image"], draws.get("teacher_drop_path"))
        variables = {"params": params, **model_state}
        outputs, model_state = task.forward(variables, batch, draws)
        adapted = student.apply(variables, outputs.maps, method=student.adapt)
        distilled = distillation(config, adapted, outputs.logits, *answers)
        ramp = warmup(config, step)
        terms = {name: ramp * term for name, term in distilled.items()}
        terms = {**task.terms(outputs, batch), **terms}
        return core.total(terms, model_state, **task.metrics(outputs, batch))

    def frozen():
        return graft.load_variables(
            config.teacher.checkpoint,
            fit,
            grid=tuple(config.teacher.model.pretrain_grid),
            rename=detector_names.rename_weights,
            dropped=UNUSED,
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights)
            agreement.check_teacher(weights, config)
        return lambda key: detector.init(teacher, key)

    def probe(frozen, batch):
        spec = augment.spec(config, train=False)
        batch = canvases.prepare(batch, spec)
        _, logits = look(frozen, batch["image"])
        return {TEACHER_CONTRAST: contrast(config, logits, batch)}

    def warning(ratio):
        return (
            f"the teacher's objectness inside of objects is {ratio:.2f} times that "
            f"elsewhere: {config.teacher.checkpoint} looks at no objects, and nothing "
            "is learned from it. Use a trained detector."
        )

    chance = core.Chance(1.0, warning, higher_is_better=True)
    return finetune.from_task(task)._replace(
        draw=draw,
        loss=loss,
        frozen=frozen,
        probe=probe,
        chance={TEACHER_CONTRAST: chance},
    )


def distillation(
    config: ConfigDict,
    adapted: tuple[jax.Array, ...],
    logits: tuple[jax.Array, ...],
    teacher_maps: tuple[jax.Array, ...],
    teacher_logits: tuple[jax.Array, ...],
) -> dict[str, jax.Array]:
    """The two terms, weighted, before their warm-up.

    Args:
        config: the recipe.
        adapted: [B, h, w, E] the student's maps of each level after its adapter.
        logits: [B, N] the student's, of each level's anchors.
        teacher_maps: as `adapted`.
        teacher_logits: as `logits`.
    """
    weights, group = config.distill, dict(group=config.loss.group)
    cut = weights.form == "probabilities"
    features, objectness = 0.0, 0.0
    levels = zip(adapted, logits, teacher_maps, teacher_logits, strict=True)
    for x, logit, teacher_x, teacher_logit in levels:
        by_position = lambda flat, shape=x.shape[:3]: flat.reshape(*shape, -1)
        logit, teacher_logit = by_position(logit), by_position(teacher_logit)
        mask = detector_distill.attention_mask(teacher_logit)
        features += detector_distill.features(x, teacher_x, mask, **group)
        objectness += detector_distill.objectness(
            logit, teacher_logit, mask, cut=cut, **group
        )
    return {
        "feature": weights.feature * features,
        "objectness": weights.objectness * objectness,
    }


def warmup(config: ConfigDict, step: jax.Array) -> jax.Array:
    """The factor of the distillation at a step: from 0 to 1 on a line."""
    length = max(config.distill.warmup_steps, 1)
    return jnp.minimum(jnp.asarray(step, jnp.float32) / length, 1.0)


def contrast(config: ConfigDict, logits: tuple, batch: dict) -> jax.Array:
    """Mean largest objectness at positions inside of an object, over that elsewhere.

    On the map of stride 16. An untrained detector has about 1.

    Args:
        config: the recipe.
        logits: [B, N] of each level's anchors.
        batch: with `boxes` and `valid_boxes`.
    """
    stride = vitdet.STRIDES[2]
    rows, columns = (side // stride for side in config.model.image_size)
    mask = detector_distill.attention_mask(
        logits[2].reshape(len(logits[2]), rows, columns, -1)
    )
    y, x = (stride * (jnp.arange(n) + 0.5) for n in (rows, columns))
    x1, y1, x2, y2 = (batch["boxes"][:, :, None, i] for i in range(4))
    down = (y[None, None] >= y1) & (y[None, None] < y2)  # [B, G, h]
    across = (x[None, None] >= x1) & (x[None, None] < x2)
    inside = down[..., None] & across[:, :, None]
    inside &= batch["valid_boxes"][..., None, None]
    inside = inside.any(axis=1).astype(jnp.float32)  # [B, h, w]
    mean = lambda where: (mask * where).sum() / jnp.maximum(where.sum(), 1.0)
    return mean(inside) / mean(1 - inside)


def check_pair(config: ConfigDict) -> None:
    """Refuses a student whose maps cannot be compared with its teacher's."""
    model, teacher = config.model, config.teacher.model
    if tuple(model.image_size) != tuple(teacher.image_size):
        raise ValueError(
            f"config.teacher.model.image_size={tuple(teacher.image_size)}, but "
            f"config.model.image_size={tuple(model.image_size)}: their maps are "
            "compared position by position; use the same canvas."
        )
    if model.adapter != teacher.features:
        raise ValueError(
            f"config.model.adapter={model.adapter}, but the teacher's maps have "
            f"config.teacher.model.features={teacher.features} channels; set "
            f"--config.model.adapter={teacher.features}."
        )
    if len(model.anchor_ratios) != len(teacher.anchor_ratios) or tuple(
        model.anchor_sizes
    ) != tuple(teacher.anchor_sizes):
        raise ValueError(
            f"config.model has anchors of {tuple(model.anchor_sizes)} pixels in "
            f"{len(model.anchor_ratios)} shapes, config.teacher.model of "
            f"{tuple(teacher.anchor_sizes)} in {len(teacher.anchor_ratios)}: their "
            "objectness is compared anchor by anchor; use the same."
        )


def check_teacher(weights: loading.Weights) -> None:
    """Refuses a file without the proposals of a detector."""
    if not any(name.startswith("proposal_generator.") for name in weights.arrays):
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} holds {weights.summary()}. "
            "Specific distillation needs a trained detector: use the workdir of a "
            "finetune:task=detection run, or a published ViTDet Mask R-CNN."
        )
