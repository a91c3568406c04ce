# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""DMAE, and linear probing, on scikit-learn's 8x8 digits: minutes on two CPU cores.

    g2sd chain --config=chains/digits_dmae --workdir=runs/digits_dmae

A student's masked autoencoder alone and with a teacher's features, each fine-tuned, and
each probed by a linear layer. Networks and lengths are those of chains/digits.
"""

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import digits, table

LINKS = {
    "teacher_mae": {},
    "teacher": {"init_from": "{teacher_mae}"},
    "teacher_probe": {"encoder.checkpoint": "{teacher_mae}"},
    "student_mae": {},
    "student_dmae": {"teacher.checkpoint": "{teacher_mae}"},
    "mae": {"init_from": "{student_mae}"},
    "dmae": {"init_from": "{student_dmae}"},
    "mae_probe": {"encoder.checkpoint": "{student_mae}"},
    "dmae_probe": {"encoder.checkpoint": "{student_dmae}"},
}
ROWS = (("teacher", "teacher"), ("MAE", "mae"), ("DMAE", "dmae"))

# The published one, for any batch: LARS takes steps of a share of the weights.
PROBE_RATE = 6.4

NOTE = (
    "Simplified against the published recipe: the student is fresh instead of MAE's "
    "own, and students pool over their patches. Both students predict raw pixels, as "
    "DMAE's do. The lengths were taken from chains/digits as they are."
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, seeds=3)
    short = args.steps or (40 if args.smoke else 0)
    return table.chain(
        "Distilling masked autoencoders on digits",
        NOTE,
        steps(short),
        (0,) if args.smoke else range(args.seeds),
        LINKS,
        ROWS,
    )


def steps(short: int = 0) -> dict[str, tuple[str, dict]]:
    """{step: (recipe, overrides)}; `short` steps each instead of the real number."""
    recipes = digits.steps(short)
    _, student = recipes["student_mae"]
    raw = dict(target="raw")
    aligned = dict(
        teacher=dict(
            model=digits.TEACHER | digits.TEACHER_DECODER, target="normalised"
        ),
        # Three quarters deep, as published; the student has half as many blocks.
        distill=dict(student_blocks=(1,), teacher_blocks=(2,)),
    )
    probe = lambda model: (
        "linprobe:model=custom",
        digits.common_keys(model, short or 300, lr=PROBE_RATE, warmup_epochs=2.0),
    )
    return {
        "teacher_mae": recipes["teacher_mae"],
        "teacher": recipes["teacher"],
        "teacher_probe": probe(digits.TEACHER),
        "student_mae": (recipes["student_mae"][0], student | raw),
        "student_dmae": ("dmae_distill", student | raw | aligned),
        "mae": recipes["mae"],
        "dmae": recipes["mae"],
        "mae_probe": probe(digits.STUDENT),
        "dmae_probe": probe(digits.STUDENT),
    }
