# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What looks wrong with a run, in a sentence each: `g2sd doctor WORKDIR`.

The run may still be going. Its config and metrics are looked at, a few hundred of its
pictures, and the fingerprints that ship with the recipes (`tools.fingerprint`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import cli, core, recipes
from g2sd_jax.data import order, source
from g2sd_jax.tools import fingerprint, finished, sections

ENDS = "exit status: 0 nothing looks wrong; 1 something does; 2 it can not be asked"
PICTURES = 256  # That mean and standard deviation are measured on.
NOTHING = 0.9  # Share of the error of a decoder that knows nothing.
GUESSING = 0.9  # Share of ln(classes), the loss of a classifier that knows nothing.


class Patient(NamedTuple):
    """A run, as far as it got."""

    workdir: str
    config: ConfigDict
    rows: Sequence[Mapping]  # of metrics.jsonl

    @property
    def steps(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    def last(self, key: str) -> float | None:
        """The newest value of a metric, None if it was never logged."""
        values = [row[key] for row in self.rows if row.get(key) is not None]
        return values[-1] if values else None


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("doctor", epilog=ENDS)
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument(
        "--record", default="", help="FILE.json: keep a chain's losses as fingerprints"
    )
    args = parser.parse_args(argv)
    if args.record:
        fingerprint.record(args.workdir, args.record)
        print(f"written to {args.record}")
        return 0
    rows = sections.rows_of(args.workdir)
    patient = Patient(args.workdir, finished.config_of(args.workdir), rows)
    found, compared = examine(patient, fingerprint.shipped())
    for sentence in found:
        print(f"- {sentence}")
    print(f"{len(found)} things look wrong" if found else "nothing looks wrong", end="")
    print(f" after {patient.steps} steps; {compared}")
    return 1 if found else 0


def examine(patient: Patient, prints) -> tuple[list[str], str]:
    """A sentence on everything that looks wrong, and what the losses stood beside."""
    curve, compared = fingerprint.compare(patient.config, patient.rows, prints)
    checks = (teacher, targets, statistics, labels, rate)
    return [said for check in checks for said in check(patient)] + curve, compared


def teacher(patient: Patient) -> list[str]:
    """A teacher that knows nothing, by what was measured before step 0."""
    config = patient.config
    if "teacher" not in config:
        return []
    path = config.teacher.checkpoint
    if path.startswith("random:"):
        return [
            f"config.teacher.checkpoint={path} is an untrained teacher: nothing can be "
            "learned from it."
        ]
    error = patient.last("teacher/reconstruction_error")
    if error is not None and error > NOTHING:
        return [
            f"the teacher reconstructs with an error of {error:.2f} on "
            f"{config.teacher.target} pixels, and about 1 is what a decoder reaches "
            f"that knows nothing: {path} has no trained decoder, or was trained on "
            "other pixels than config.teacher.target says, or saw pictures of another "
            "config.data.mean and std."
        ]
    right = patient.last("teacher/top1_of_first_batch")
    if right is not None and right < 200 / config.data.classes:
        return [
            f"the teacher names {right:.1f} % of the first batch, little more than "
            f"guessing among {config.data.classes} classes: {path} has no trained "
            "head, or one of other classes."
        ]
    return []


def targets(patient: Patient) -> list[str]:
    """Other pixels asked for than the recipe asks for; the loss hardly shows it."""
    mine = core.flatten(patient.config.to_dict())
    theirs = core.flatten(recipes.load(patient.config.stage).to_dict())
    return [
        f"config.{key}={mine[key]}, where the recipe {patient.config.stage} has "
        f"{theirs[key]}: the losses are on another scale, and a generic teacher is "
        "to predict normalised patches, one of DMAE raw ones."
        for key in ("target", "teacher.target")
        if key in mine and key in theirs and mine[key] != theirs[key]
    ]


def statistics(patient: Patient) -> list[str]:
    """A mean or standard deviation that is not the pictures' own."""
    config = patient.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.limit = PICTURES
    data = config.data
    pictures = source.load(config, data.train_split, evaluate=True)
    batch, _ = next(order.eval_batches(pictures, min(PICTURES, pictures.count)))
    image = batch["image"][batch["valid"]] / 255.0
    mean, std = image.mean(axis=(0, 1, 2)), image.std(axis=(0, 1, 2))
    centre = (mean - np.array(data.mean)) / np.array(data.std)
    spread = std / np.array(data.std)
    if np.all(np.abs(centre) < 0.7) and np.all((spread > 0.5) & (spread < 2)):
        return []
    own = [", ".join(f"{value:.3f}" for value in values) for values in (mean, std)]
    return [
        f"the pictures have mean {own[0]} and standard deviation {own[1]}, but "
        f"config.data.mean={tuple(data.mean)} and config.data.std={tuple(data.std)}: "
        "what the network sees is not normalised (right only for weights that were "
        "trained so)."
    ]


def labels(patient: Patient) -> list[str]:
    """Labels that have nothing to do with the pictures."""
    config, classes = patient.config, patient.config.data.classes
    if "task" not in config or config.task != "classification":
        return []
    told = [row["loss/xent"] for row in patient.rows if row.get("loss/xent")]
    tail = told[-max(1, len(told) // 4) :]
    plain = config.stage == "finetune" and patient.steps >= 100
    guess = math.log(classes)
    if plain and tail and np.mean(tail) > GUESSING * guess:
        return [
            f"the loss is still {np.mean(tail):.2f} after {patient.steps} steps, and "
            f"guessing among {classes} classes costs ln({classes}) = {guess:.2f}: the "
            "labels have nothing to do with the pictures (shuffled?), or nothing is "
            "learned at all (config.optim.lr)."
        ]
    top1 = patient.last("eval/top1")
    if plain and tail and top1 is not None and top1 < 200 / classes:
        return [
            f"the training pictures are learned (loss {np.mean(tail):.2f}), but of the "
            f"held-out ones {top1:.1f} % are named, little more than guessing: the two "
            "splits number their classes differently, or the labels are shuffled."
        ]
    return []


def rate(patient: Patient) -> list[str]:
    """A learning rate that was not scaled with the batch."""
    config = patient.config
    recipe = config.stage
    if recipe == "finetune" and config.model.size != "custom":
        recipe += f":model={config.model.size}"
    known = recipes.load(recipe)
    lr, batch = config.optim.lr, config.batch
    scaled = known.optim.lr * batch / known.batch
    base = known.optim.lr * 256 / known.batch
    told = f"config.optim.lr={lr:g} with config.batch={batch}"
    if (
        math.isclose(lr, known.optim.lr, rel_tol=1e-3)
        and not 0.5 < batch / known.batch < 2
    ):
        return [
            f"{told}: that rate is the recipe's for a batch of {known.batch}; scaled "
            f"with the batch it is {scaled:.3g}."
        ]
    if math.isclose(lr, base, rel_tol=1e-3) and not 0.5 < batch / 256 < 2:
        return [
            f"{told}: that is the published base rate, which is per 256 examples; "
            f"times batch / 256 it is {scaled:.3g}."
        ]
    return []
