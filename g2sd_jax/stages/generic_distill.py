# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic distillation: the student learns a teacher's features (G2SD, and others).

What is learned is `config.distill.target`: hidden features of the teacher's decoder, as
in G2SD, or of its encoder, which then need not be a masked autoencoder's at all. The
teacher sees what the student sees (`view=visible`), or the whole picture (`full`): then
the student's decoder predicts what the teacher makes of patches that the student does
not see (MaskDistill, arXiv 2210.10615), or, where nothing is hidden (`mask_ratio=0`),
the student's encoder has no decoder after it (TinyMIM, arXiv 2301.01296).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from g2sd_jax import core, errors
from g2sd_jax.evaluators import masked as masked_evaluators
from g2sd_jax.losses import distill
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction, relations, teachers
from g2sd_jax.weights import agreement, catalogue, graft, loading, parts

NEEDS = ("mask_ratio", "monitor", "teacher", "distill")
DISTILLS = "generic"
TOKENS = ("all", "masked", "visible")
TARGETS = ("decoder", "encoder")
# The authors' students keep these without training them, unless a term asks for it.
UNBUILT = (r"decoder_(norm|pred)\..*", r"encoderfeature_pred\..*")


class Target(NamedTuple):
    """A teacher of one kind, as the one stage below needs it."""

    student: mae.Mae
    # (params, frozen, image, masking) -> {term: weighted scalar}
    terms: Callable
    frozen: Callable  # () -> the teacher's variables
    probe: Callable
    trim: Callable
    chance: dict


def build(config: ConfigDict) -> core.Stage:
    """Match hidden features of the teacher on the same images."""
    errors.one_of("config.distill.tokens", config.distill.tokens, TOKENS)
    name = errors.one_of("config.distill.target", target_of(config), TARGETS)
    check_terms(config)
    augment.check_normalisation(config.teacher, "config.teacher", config.model.channels)
    target = (of_decoder if name == "decoder" else of_encoder)(config)
    student = target.student
    spec = augment.spec(config, train=True)

    def init(key):
        return mae.init(student, key)

    def draw(key, batch):
        return reconstruction.draw(key, batch, config)

    def loss(params, model_state, frozen, batch, draws, step):
        image = augment.prepare(batch, draws, spec)["image"]
        if config.mask_ratio:
            masking = patches.mask(draws["noise"], config.mask_ratio)
        else:  # In the order of the grid.
            masking = mae.no_masking(student, len(image))
        return core.total(target.terms(params, frozen, image, masking), model_state)

    stage = core.Stage(
        init,
        draw,
        loss,
        target.frozen,
        target.probe,
        trim=target.trim,
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        warm_start=lambda variables: reconstruction.warm_start(
            variables, config, UNBUILT
        ),
        describe=mae.describe(config),
        chance=target.chance,
        reads=reconstruction.reads(config),
        picture=reconstruction.picture(config),
        summarise=reconstruction.summarise(config),
    )
    return stage._replace(
        evaluators=masked_evaluators.evaluators(config, stage, student)
    )


def target_of(config: ConfigDict) -> str:
    """`config.distill.target`; runs from before the key learn of the decoder."""
    return config.distill.get("target", "decoder")


def of_decoder(config: ConfigDict) -> Target:
    """Hidden features of a masked autoencoder's decoder, on the same masked images."""
    weights = config.distill
    options = layers.compute_options(config)
    errors.require(
        config.teacher,
        "config.teacher",
        ("target",),
        "config.distill.target=decoder (generic_distill:target=decoder has it)",
    )
    full_teacher = mae.autoencoder(
        config.teacher.model, "config.teacher.model", **options
    )
    _check_decoder(config, full_teacher)
    with_relations = weights.relation > 0
    teacher = full_teacher.clone(
        dec_depth=weights.teacher_block if weights.feature else 0,
        norm=weights.feature > 0,
        pixel_head=False,
        relations=with_relations,
    )
    student = mae.autoencoder(config.model, **options).clone(
        pixel_head=False,
        feature_width=full_teacher.dec_width if weights.feature else 0,
        encoder_feature_width=full_teacher.width if weights.encoder_feature else 0,
        relations=with_relations,
    )
    if not weights.feature:
        student = student.clone(dec_depth=0)

    def terms(params, frozen, image, masking):
        with jax.named_scope("teacher"):
            shown = teachers.picture(image, config)
            teacher_output = teacher.apply(frozen, shown, masking)
        out = student.apply({"params": params}, image, masking)
        terms = {}
        if weights.feature:
            # The target is standardised over channels, without scale or bias, so that
            # one beta means the same for every teacher width and block.
            terms["feature"] = weights.feature * distill.feature_loss(
                out.feature,
                layers.standardise(teacher_output.decoder),
                beta=weights.beta,
                supervised=supervised(masking, weights.tokens),
            )
        if weights.encoder_feature:
            target = layers.standardise(teacher_output.prenorm)
            terms["encoder_feature"] = weights.encoder_feature * distill.feature_loss(
                out.encoder_feature, target, beta=weights.beta
            )
        if with_relations:
            terms["relation"] = relations.term(out.qkv, teacher_output.qkv, weights)
        return terms

    def frozen():
        return graft.load_variables(
            config.teacher.checkpoint,
            fit,
            grid=full_teacher.grid,
            dropped=parts.FEATURE_HEAD_NAMES,
        )

    def fit(weights):
        if weights is not None:
            check_teacher(weights, config.teacher.target)
            agreement.check_teacher(weights, config)
        return lambda key: mae.init(full_teacher, key)

    def probe(frozen, batch):
        target = config.teacher.target
        error = reconstruction.measure(
            full_teacher,
            frozen,
            batch,
            config,
            target,
            lambda image: teachers.picture(image, config),
        )
        return {reconstruction.TEACHER_ERROR: error}

    return Target(
        student,
        terms,
        frozen,
        probe,
        trim=lambda variables: mae.trim(variables, teacher),
        chance=reconstruction.teacher_chance(config),
    )


def of_encoder(config: ConfigDict) -> Target:
    """Features of any encoder: of a block, or after its last norm."""
    weights = config.distill
    block, with_relations = weights.teacher_block, weights.relation > 0
    from_block = with_features(config) and block > 0
    from_norm = with_features(config) and not block
    full_teacher = teachers.build(config, last_norm=from_norm)
    _check_encoder(config, full_teacher)
    needed = [block] * from_block
    needed += [1 + max(relations.blocks(config, full_teacher))] * with_relations
    depth = full_teacher.depth if from_norm else max(needed)
    teacher = full_teacher.clone(depth=depth, taps=from_block, relations=with_relations)
    predicts = predicts_hidden(config)
    width = full_teacher.width if with_features(config) else 0
    student = mae.autoencoder(
        config.model,
        **layers.compute_options(config),
        pixel_head=False,
        feature_width=width if predicts else 0,
        encoder_feature_width=0 if predicts else width,
        relations=with_relations,
    )
    if not predicts:
        student = student.clone(dec_depth=0)
    prefix = int(teacher.variant.class_token)

    def terms(params, frozen, image, masking):
        shared = masking if weights.view == "visible" and config.mask_ratio else None
        with jax.named_scope("teacher"):
            shown = teachers.picture(image, config, teacher.image_size)
            answer = teachers.ask(teacher, frozen, shown, shared)
        out = student.apply({"params": params}, image, masking)
        # A student always has a class token; without one to learn from, it learns none.
        paired = lambda x: x[..., 1 - prefix :, :]
        terms = {}
        if with_features(config):
            features = answer.taps[block - 1] if from_block else answer.tokens
            features = features.astype(jnp.float32)
            if weights.standardise:
                features = layers.standardise(features)
            learned = paired(out.feature if predicts else out.encoder_feature)
            terms = feature_terms(learned, features, masking, config, prefix)
        if with_relations:
            theirs = answer.qkv
            if shared is None and config.mask_ratio:
                theirs = [teachers.gather(x, masking.ids_keep, prefix) for x in theirs]
            mine = jax.tree.map(paired, out.qkv)
            terms["relation"] = relations.term(mine, theirs, weights)
        return terms

    return Target(
        student,
        terms,
        frozen=lambda: teachers.load(config, full_teacher),
        probe=core.no_metrics,
        trim=lambda variables: vit.trim(variables, teacher),
        chance={},
    )


def feature_terms(
    learned: jax.Array,
    features: jax.Array,
    masking: patches.Masking,
    config: ConfigDict,
    prefix: int,
) -> dict[str, jax.Array]:
    """The weighted terms of an encoder's features.

    Args:
        learned: [B, T, D] of the student, class token first if `prefix` is 1, then all
            patches in the order of the grid, or the visible ones in theirs.
        features: [B, T, D] of the teacher, likewise.
        masking: of the student.
        config: the recipe.
        prefix: 1 if there is a class token, else 0.
    """
    weights = config.distill
    kind = dict(beta=weights.beta, distance=weights.distance)
    terms = {}
    if weights.feature:
        counted = None
        if weights.tokens != "all":
            counted = jnp.ones(learned.shape[:2])
            if predicts_hidden(config):
                counted = supervised(masking, weights.tokens)[:, 1 - prefix :]
            elif prefix:
                counted = counted.at[:, 0].set(0.0)
        terms["feature"] = weights.feature * distill.feature_loss(
            learned, features, **kind, supervised=counted
        )
    if weights.class_token:
        terms["class_token"] = weights.class_token * distill.feature_loss(
            learned[:, :1], features[:, :1], **kind
        )
    return terms


def with_features(config: ConfigDict) -> bool:
    """Whether a term compares features of the encoder."""
    return bool(config.distill.feature or config.distill.class_token)


def predicts_hidden(config: ConfigDict) -> bool:
    """Whether the student's decoder predicts features of patches it does not see."""
    full_view = config.distill.view == "full"
    return with_features(config) and full_view and config.mask_ratio > 0


def supervised(masking: patches.Masking, tokens: str) -> jax.Array | None:
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
            f"{catalogue.suggestions('autoencoder', weights.size)}); encoder-only and "
            "fine-tuned files will not do, but for generic_distill:target=encoder."
        )
    trained = weights.describe.get("target", target)
    if trained != target:
        raise ValueError(
            f"config.teacher.target={target!r}, but {weights.source!r} was trained on "
            f"{trained} pixels; set --config.teacher.target={trained}."
        )


def check_terms(config: ConfigDict) -> None:
    """Refuses terms that are all off, and those that the target has not."""
    weights = config.distill
    names = ["feature", "encoder_feature", "relation"]
    if target_of(config) == "encoder":
        names = ["feature", "class_token", "relation"]
        because = "config.distill.target=encoder (generic_distill:target=encoder has "
        errors.require(weights, "config.distill", (*names, "view"), f"{because}them)")
        if "decoder" in config.teacher.model:
            raise ValueError(
                "config.distill.target=encoder, but config.teacher.model is that of an "
                "autoencoder; use generic_distill:target=encoder."
            )
    if not any(weights[name] for name in names):
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(
            f"config.distill has no term left: {listed} are all 0; give one a weight."
        )


def _check_decoder(config: ConfigDict, full_teacher: mae.Mae) -> None:
    weights = config.distill
    reconstruction.check_grids(config, full_teacher)
    if not 1 <= weights.teacher_block <= full_teacher.dec_depth:
        raise ValueError(
            f"config.distill.teacher_block={weights.teacher_block} is not a block of "
            f"the teacher's decoder; choose 1 to {full_teacher.dec_depth}."
        )
    if weights.get("view", "visible") != "visible":
        raise ValueError(
            f"config.distill.view={weights.view}: a decoder as teacher sees what the "
            "student sees; use generic_distill:target=encoder."
        )
    relations.check(config, full_teacher)


def _check_encoder(config: ConfigDict, full_teacher: vit.Vit) -> None:
    weights = config.distill
    teachers.check(config, full_teacher)
    errors.one_of("config.distill.distance", weights.distance, distill.DISTANCES)
    if config.mask_ratio:
        reconstruction.check_masking(config, vit.grid(config.model))
    elif weights.view == "visible" or config.augment.mixup or config.augment.cutmix:
        raise ValueError(
            "config.mask_ratio=0 hides nothing: that takes config.distill.view=full, "
            "and pictures one at a time (config.augment.mixup=0, cutmix=0)."
        )
    if not 0 <= weights.teacher_block <= full_teacher.depth:
        raise ValueError(
            f"config.distill.teacher_block={weights.teacher_block} is not a block of "
            f"the teacher's encoder; choose 1 to {full_teacher.depth}, or 0 for its "
            "last norm."
        )
    if weights.tokens == "masked" and not predicts_hidden(config):
        raise ValueError(
            "config.distill.tokens=masked, but the student predicts no hidden patches; "
            "set config.distill.view=full and a config.mask_ratio, or tokens=all."
        )
    if weights.class_token and not full_teacher.variant.class_token:
        raise ValueError(
            f"config.distill.class_token={weights.class_token}, but the teacher has no "
            "class token; set it to 0."
        )
    relations.check(config, full_teacher)
