# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic distillation: the student's decoder predicts the teacher's (G2SD)."""

import jax.numpy as jnp

from g2sd_jax import core
from g2sd_jax.losses import distill
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction, signal
from g2sd_jax.weights import agreement, catalogue, graft, loading

NEEDS = ("mask_ratio", "signal", "teacher", "distill")
TOKENS = ("all", "masked", "visible")
# The authors' students keep these without training them, unless a term asks for it.
UNBUILT = (r"decoder_(norm|pred)\..*", r"encoderfeature_pred\..*")


def build(config) -> core.Stage:
    """Match the hidden features of the teacher's decoder on the same masked images."""
    weights = config.distill
    core.one_of("config.distill.tokens", weights.tokens, TOKENS)
    machine = layers.machine(config)
    whole = mae.autoencoder(config.teacher.model, "config.teacher.model", **machine)
    _check(config, whole)
    relations = weights.relation > 0
    teacher = whole.clone(
        dec_depth=weights.teacher_block if weights.feature else 0,
        norm=weights.feature > 0,
        pixel_head=False,
        relations=relations,
    )
    student = mae.autoencoder(config.model, **machine).clone(
        pixel_head=False,
        feature_width=whole.dec_width if weights.feature else 0,
        encoder_feature_width=whole.width if weights.encoder_feature else 0,
        relations=relations,
    )
    if not weights.feature:
        student = student.clone(dec_depth=0)
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
        terms = {}
        if weights.feature:
            # The target is standardised over channels, without scale or bias, so that
            # one beta means the same for every teacher width and block.
            terms["feature"] = weights.feature * distill.feature_loss(
                out.feature,
                layers.standardise(seen.decoder),
                beta=weights.beta,
                supervised=supervised(masking, weights.tokens),
            )
        if weights.encoder_feature:
            target = layers.standardise(seen.prenorm)
            terms["encoder_feature"] = weights.encoder_feature * distill.feature_loss(
                out.encoder_feature, target, beta=weights.beta
            )
        if relations:
            terms["relation"] = weights.relation * distill.relation_loss(
                out.qkv, seen.qkv, groups=weights.relation_groups
            )
        return core.total(terms, model_state)

    def frozen():
        return graft.load_variables(
            config.teacher.checkpoint,
            fit,
            grid=whole.grid,
            dropped=(r"(encoder|decoder)feature_pred\..*",),
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights, config.teacher.target)
            agreement.teacher(weights, config)
        return lambda key: mae.init(whole, key)

    def probe(frozen, batch):
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
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        warm_start=lambda variables: reconstruction.warm_start(
            variables, config, UNBUILT
        ),
        describe=mae.describe(config),
    )
    return stage._replace(evaluators=signal.evaluators(config, stage, student))


def supervised(masking: patches.Masking, tokens: str):
    """[B, 1 + N] 1 for the tokens that count, class token first; None for all."""
    if tokens == "all":
        return None
    counted = masking.removed if tokens == "masked" else 1 - masking.removed
    return jnp.pad(counted, ((0, 0), (1, 0)))


def check_teacher(weights: loading.Weights, target: str) -> None:
    """Refuses a file without decoder: its features would be those of random weights."""
    if not weights.has_decoder:
        raise ValueError(
            f"config.teacher.checkpoint={weights.source!r} holds {weights.summary()}. "
            "Generic distillation needs the teacher's decoder: use the workdir of a "
            "pretrain run or a full file (published: "
            f"{catalogue.would_do('autoencoder', weights.size)}); encoder-only and "
            "fine-tuned files will not do."
        )
    trained = weights.describe.get("target", target)
    if trained != target:
        raise ValueError(
            f"config.teacher.target={target!r}, but {weights.source!r} was trained on "
            f"{trained} pixels; set --config.teacher.target={trained}."
        )


def _check(config, whole: mae.Mae) -> None:
    weights = config.distill
    reconstruction.check_grids(config, whole)
    if not 1 <= weights.teacher_block <= whole.dec_depth:
        raise ValueError(
            f"config.distill.teacher_block={weights.teacher_block} is not a block of "
            f"the teacher's decoder; choose 1 to {whole.dec_depth}."
        )
    if not weights.feature and not weights.encoder_feature and not weights.relation:
        raise ValueError(
            "config.distill has no term left: feature, encoder_feature and relation "
            "are all 0; give one a weight."
        )
    student = vit.size(config.model)
    groups = weights.relation_groups
    if weights.relation and (student.width % groups or whole.width % groups):
        raise ValueError(
            f"config.distill.relation_groups={groups} must divide both widths, "
            f"{student.width} and {whole.width}."
        )
