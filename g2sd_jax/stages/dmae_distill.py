# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""DMAE: a masked autoencoder that also matches a teacher's encoder (2208.12256)."""

from g2sd_jax import core, metrics
from g2sd_jax.losses import distill, masked
from g2sd_jax.models import layers, mae
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction, signal
from g2sd_jax.weights import agreement, graft

NEEDS = ("mask_ratio", "target", "signal", "teacher", "distill")


def build(config) -> core.Stage:
    """Reconstruct the image, and align chosen encoder blocks with the teacher's."""
    said = config.distill
    machine = layers.machine(config)
    whole = mae.autoencoder(config.teacher.model, "config.teacher.model", **machine)
    student = mae.autoencoder(
        config.model,
        **machine,
        align_blocks=tuple(said.student_blocks),
        align_width=whole.width,
        align_projection=said.projection,
    )
    _check(config, student, whole)
    # Nothing after the last aligned block is looked at.
    teacher = whole.clone(
        depth=1 + max(said.teacher_blocks), dec_depth=0, norm=False, taps=True
    )
    spec = augment.spec(config, train=True)

    def init(key, batch):
        return mae.init(student, key)

    def draw(key, batch):
        return reconstruction.draw(key, batch, config)

    def loss(params, model_state, frozen, batch, draws, step):
        image = augment.prepare(batch, draws, spec)["image"]
        masking = patches.mask(draws["noise"], config.mask_ratio)  # Seen by both.
        seen = teacher.apply(frozen, image, masking)
        out = student.apply({"params": params}, image, masking)
        target = reconstruction.pixels(image, student.patch, config.target)
        terms = {"pixel": masked.masked_pixel_loss(out.pixels, target, masking.removed)}
        blocks = zip(said.student_blocks, said.teacher_blocks, strict=True)
        for (mine, theirs), feature in zip(blocks, out.aligned, strict=True):
            distance = distill.align_loss(
                feature,
                seen.taps[theirs],
                norm=said.norm,
                unit=said.projection != "none",
            )
            name = f"align_block{mine}"  # One block may have several teachers.
            terms[name] = terms.get(name, 0.0) + said.weight * distance
        return core.total(terms, model_state)

    def frozen():
        return graft.load_variables(config.teacher.checkpoint, fit, grid=whole.grid)

    def fit(weights):
        if weights is not None:
            agreement.teacher(weights, config)
        if weights is None or weights.has_decoder:
            return lambda key: mae.init(whole, key)
        metrics.say(
            f"{weights.source} holds {weights.summary()}: enough for DMAE, but its "
            "reconstruction can not be measured before step 0."
        )
        return lambda key: mae.init(whole.clone(dec_depth=0), key)

    def probe(frozen, batch):
        if "decoder_embed" not in frozen["params"]:
            return {}
        target = config.teacher.target
        error = reconstruction.measure(whole, frozen, batch, config, target)
        return {"teacher/reconstruction_error": error}

    stage = core.Stage(
        init,
        draw,
        loss,
        frozen,
        probe,
        trim=lambda variables: mae.trim(variables, teacher),
        warm_start=lambda variables: reconstruction.warm_start(variables, config),
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        describe=dict(mae.describe(config), target=config.target),
    )
    return stage._replace(evaluators=signal.evaluators(config, stage, student))


def _check(config, student: mae.Mae, whole: mae.Mae) -> None:
    said = config.distill
    reconstruction.check_grids(config, whole)
    core.one_of("config.distill.norm", said.norm, distill.ALIGN)
    core.one_of("config.distill.projection", said.projection, mae.PROJECTIONS)
    pairs = len(said.student_blocks), len(said.teacher_blocks)
    if 0 in pairs or pairs[0] != pairs[1]:
        raise ValueError(
            f"config.distill.student_blocks={tuple(said.student_blocks)} and "
            f"teacher_blocks={tuple(said.teacher_blocks)} are paired one to one; give "
            "as many of the one as of the other."
        )
    for key, model in (("student_blocks", student), ("teacher_blocks", whole)):
        blocks = tuple(said[key])
        if not all(0 <= block < model.depth for block in blocks):
            raise ValueError(
                f"config.distill.{key}={blocks}: its encoder has blocks 0 to "
                f"{model.depth - 1}."
            )
    if said.projection == "none" and student.width != whole.width:
        raise ValueError(
            f"config.distill.projection=none compares widths {student.width} and "
            f"{whole.width}; they must be equal, or use fc."
        )
