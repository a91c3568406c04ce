# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The relation term of generic distillation: attention maps, and their like."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.losses import distill
from g2sd_jax.models import mae, vit


def term(
    mine: Sequence[jax.Array], theirs: Sequence[jax.Array], weights: ConfigDict
) -> jax.Array:
    """The weighted distance of relations in the chosen blocks.

    Args:
        mine: queries, keys and values [depth, B, T, D] of the student.
        theirs: of the teacher, of the same tokens.
        weights: `config.distill`.
    """
    options = {}
    if weights.get("relation_student_blocks"):
        mine = _chosen(mine, weights.relation_student_blocks)
        theirs = _chosen(theirs, weights.relation_teacher_blocks)
    if "relation_pairs" in weights:  # Runs from before the keys have all pairs.
        options = dict(
            pairs=tuple(weights.relation_pairs), distance=weights.relation_distance
        )
    return weights.relation * distill.relation_loss(
        tuple(mine), tuple(theirs), groups=weights.relation_groups, **options
    )


def _chosen(qkv: Sequence[jax.Array], blocks: Sequence[int]) -> list[jax.Array]:
    return [x[np.asarray(blocks)] for x in qkv]


def blocks(config: ConfigDict, teacher: vit.Vit | mae.Mae) -> tuple[int, ...]:
    """The teacher's blocks, counted from 0, whose relations are learned."""
    chosen = tuple(config.distill.get("relation_teacher_blocks") or ())
    return chosen or tuple(range(teacher.depth))


def check(config: ConfigDict, teacher: vit.Vit | mae.Mae) -> None:
    """Refuses pairs, blocks and groups that the two models do not have."""
    weights = config.distill
    student, groups = vit.size(config.model), weights.relation_groups
    if weights.relation and (student.width % groups or teacher.width % groups):
        raise ValueError(
            f"config.distill.relation_groups={groups} must divide both widths, "
            f"{student.width} and {teacher.width}."
        )
    if "relation_pairs" not in weights:
        return
    for pair in weights.relation_pairs or ("",):
        errors.one_of("config.distill.relation_pairs", pair, distill.PAIRS)
    errors.one_of(
        "config.distill.relation_distance",
        weights.relation_distance,
        distill.RELATION_DISTANCES,
    )
    mine, theirs = (
        tuple(weights[f"relation_{side}_blocks"]) for side in ("student", "teacher")
    )
    if len(mine) != len(theirs):
        raise ValueError(
            f"config.distill.relation_student_blocks={mine} and relation_teacher_blocks"
            f"={theirs} are paired one to one; give as many of the one as of the other."
        )
    for side, chosen, depth in (
        ("student", mine, student.depth),
        ("teacher", theirs, teacher.depth),
    ):
        if not all(0 <= block < depth for block in chosen):
            raise ValueError(
                f"config.distill.relation_{side}_blocks={chosen}: its encoder has "
                f"blocks 0 to {depth - 1}."
            )
