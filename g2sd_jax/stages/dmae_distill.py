# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""DMAE: a masked autoencoder that also matches a teacher's encoder (2208.12256).

With the term `relation` it also learns the teacher's attention maps, as MAE-Lite does
(arXiv 2205.14443).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from g2sd_jax import core, errors, parallel
from g2sd_jax.evaluators import masked as masked_evaluators
from g2sd_jax.losses import distill, masked
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction, relations, teachers
from g2sd_jax.weights import agreement, graft

NEEDS = ("mask_ratio", "target", "monitor", "teacher", "distill")
DISTILLS = "generic"


class Teacher(NamedTuple):
    """A teacher of one kind, as the one stage below needs it."""

    encoder: mae.Mae | vit.Vit  # Whole, or of it all that was asked for.
    # (frozen, image, masking) -> its `teachers.Answer`, of the student's tokens
    ask: Callable
    frozen: Callable  # () -> its variables
    probe: Callable
    trim: Callable
    chance: dict
    class_token: bool = True


def build(config: ConfigDict) -> core.Stage:
    """Reconstruct the image, and align chosen encoder blocks with the teacher's."""
    distillation = config.distill
    options = layers.compute_options(config)
    make = autoencoder_teacher if "decoder" in config.teacher.model else encoder_teacher
    teacher = make(config)
    relation = distillation.get("relation", 0.0)
    student = mae.autoencoder(
        config.model,
        **options,
        align_blocks=tuple(distillation.student_blocks),
        align_width=teacher.encoder.width,
        align_projection=distillation.projection,
        relations=relation > 0,
    )
    _check(config, student, teacher.encoder)
    augment.check_normalisation(config.teacher, "config.teacher", config.model.channels)
    spec = augment.spec(config, train=True)

    def init(key):
        return mae.init(student, key)

    def draw(key, batch):
        return reconstruction.draw(key, batch, config)

    def loss(params, model_state, frozen, batch, draws, step):
        image = augment.prepare(batch, draws, spec)["image"]
        masking = patches.mask(draws["noise"], config.mask_ratio)  # Seen by both.
        with jax.named_scope("teacher"):
            answer = teacher.ask(frozen, image, masking)
        out = student.apply({"params": params}, image, masking)
        target = reconstruction.pixels(image, student.patch, config.target)
        terms = {"pixel": masked.masked_pixel_loss(out.pixels, target, masking.removed)}
        # A student always has a class token; without one to learn from, it learns none.
        paired = lambda x: x if teacher.class_token else x[..., 1:, :]
        blocks = zip(
            distillation.student_blocks, distillation.teacher_blocks, strict=True
        )
        for (mine, theirs), feature in zip(blocks, out.aligned, strict=True):
            distance = distill.align_loss(
                paired(feature),
                answer.taps[theirs],
                norm=distillation.norm,
                unit=distillation.projection != "none",
            )
            name = f"align_block{mine}"  # One block may have several teachers.
            terms[name] = terms.get(name, 0.0) + distillation.weight * distance
        if relation:
            mine = jax.tree.map(paired, out.qkv)
            terms["relation"] = relations.term(mine, answer.qkv, distillation)
        return core.total(terms, model_state)

    stage = core.Stage(
        init,
        draw,
        loss,
        teacher.frozen,
        teacher.probe,
        trim=teacher.trim,
        warm_start=lambda variables: reconstruction.warm_start(variables, config),
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        describe=dict(mae.describe(config), target=config.target),
        chance=teacher.chance,
        reads=reconstruction.reads(config),
        picture=reconstruction.picture(config),
        summarise=reconstruction.summarise(config),
    )
    return stage._replace(
        evaluators=masked_evaluators.evaluators(config, stage, student)
    )


def last_block(config: ConfigDict, teacher: mae.Mae | vit.Vit) -> int:
    """Blocks of the teacher that are looked at, counted from the first."""
    needed = [*config.distill.teacher_blocks]
    if config.distill.get("relation", 0.0):
        needed += relations.blocks(config, teacher)
    return 1 + max(needed, default=0)


def autoencoder_teacher(config: ConfigDict) -> Teacher:
    """The encoder of a masked autoencoder, which sees what the student sees."""
    full_teacher = mae.autoencoder(
        config.teacher.model, "config.teacher.model", **layers.compute_options(config)
    )
    reconstruction.check_grids(config, full_teacher)
    if config.distill.get("view", "visible") != "visible":
        raise ValueError(
            f"config.distill.view={config.distill.view}: an autoencoder sees what the "
            "student sees; with dmae_distill:teacher=file its encoder alone is read."
        )
    teacher = full_teacher.clone(
        depth=last_block(config, full_teacher),
        dec_depth=0,
        norm=False,
        taps=True,
        relations=config.distill.get("relation", 0.0) > 0,
    )

    def ask(frozen, image, masking):
        out = teacher.apply(frozen, teachers.picture(image, config), masking)
        return teachers.Answer(None, out.taps, out.qkv)

    def frozen():
        return graft.load_variables(
            config.teacher.checkpoint, fit, grid=full_teacher.grid
        )

    def fit(weights):
        if weights is not None:
            agreement.check_teacher(weights, config)
        if weights is None or weights.has_decoder:
            return lambda key: mae.init(full_teacher, key)
        parallel.print_once(
            f"{weights.source} holds {weights.summary()}: enough for DMAE, but its "
            "reconstruction can not be measured before step 0."
        )
        return lambda key: mae.init(full_teacher.clone(dec_depth=0), key)

    def probe(frozen, batch):
        if "decoder_embed" not in frozen["params"]:
            return {}
        error = reconstruction.measure(
            full_teacher,
            frozen,
            batch,
            config,
            config.teacher.target,
            lambda image: teachers.picture(image, config),
        )
        return {reconstruction.TEACHER_ERROR: error}

    return Teacher(
        full_teacher,
        ask,
        frozen,
        probe,
        trim=lambda variables: mae.trim(variables, teacher),
        chance=reconstruction.teacher_chance(config),
    )


def encoder_teacher(config: ConfigDict) -> Teacher:
    """Any encoder, which sees the visible patches or the whole picture."""
    full_teacher = teachers.build(config, last_norm=False)
    teachers.check(config, full_teacher)
    teacher = full_teacher.clone(
        depth=last_block(config, full_teacher),
        taps=True,
        relations=config.distill.relation > 0,
    )
    prefix = int(teacher.variant.class_token)

    def ask(frozen, image, masking):
        shown = teachers.picture(image, config, teacher.image_size)
        if config.distill.view == "visible":
            return teachers.ask(teacher, frozen, shown, masking)
        answer = teachers.ask(teacher, frozen, shown, None)
        visible = lambda x: teachers.gather(x, masking.ids_keep, prefix)
        return jax.tree.map(visible, answer)

    return Teacher(
        full_teacher,
        ask,
        frozen=lambda: teachers.load(config, full_teacher),
        probe=core.no_metrics,
        trim=lambda variables: vit.trim(variables, teacher),
        chance={},
        class_token=bool(prefix),
    )


def _check(
    config: ConfigDict, student: mae.Mae, full_teacher: mae.Mae | vit.Vit
) -> None:
    distillation = config.distill
    reconstruction.check_masking(config, vit.grid(config.model))
    if "relation" in distillation:
        relations.check(config, full_teacher)
    errors.one_of("config.distill.norm", distillation.norm, distill.ALIGN)
    errors.one_of("config.distill.projection", distillation.projection, mae.PROJECTIONS)
    pairs = len(distillation.student_blocks), len(distillation.teacher_blocks)
    aligned_or_related = any(pairs) or distillation.get("relation", 0.0)
    if not aligned_or_related or pairs[0] != pairs[1]:
        raise ValueError(
            f"config.distill.student_blocks={tuple(distillation.student_blocks)} and "
            f"teacher_blocks={tuple(distillation.teacher_blocks)} are paired one to "
            "one; give as many of the one as of the other."
        )
    for key, model in (("student_blocks", student), ("teacher_blocks", full_teacher)):
        blocks = tuple(distillation[key])
        if not all(0 <= block < model.depth for block in blocks):
            raise ValueError(
                f"config.distill.{key}={blocks}: its encoder has blocks 0 to "
                f"{model.depth - 1}."
            )
    if distillation.projection == "none" and student.width != full_teacher.width:
        raise ValueError(
            f"config.distill.projection=none compares widths {student.width} and "
            f"{full_teacher.width}; they must be equal, or use fc."
        )
