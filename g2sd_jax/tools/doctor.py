# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What looks wrong with a run, in a sentence each: `g2sd doctor WORKDIR`.

The run may still be going. Its config and metrics are examined, a few hundred of its
pictures, and the fingerprints that ship with the recipes (`pages.fingerprint`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import command, core, errors, finished, recipes, stages, workdir
from g2sd_jax.data import order, source
from g2sd_jax.pages import fingerprint, sections

ENDS = "exit status: 0 nothing looks wrong; 1 something does; 2 it can not be asked"
PICTURES = 256  # That mean and standard deviation are measured on.
ENOUGH = 100  # Steps after which a loss has left that of a guess.
# How far from chance a value must be: less than a share of an error or loss; more than
# a multiple of a score, or a part of the way to 100 % if that is nearer (few classes).
SHARE_OF_ERROR, TIMES_SCORE, PART_OF_WAY = 0.9, 2.0, 0.25


class Patient(NamedTuple):
    """A run, as far as it got."""

    workdir: str
    config: ConfigDict
    rows: Sequence[Mapping]  # of metrics.jsonl

    @property
    def stage(self) -> core.Stage:
        return stages.build(self.config)

    @property
    def steps(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    def last(self, key: str) -> float | None:
        """The newest value of a metric, None if it was never logged."""
        return next(iter(self.values(key)[::-1]), None)

    def values(self, key: str) -> list[float]:
        """All values of a metric, in the order they were logged."""
        return [row[key] for row in self.rows if row.get(key) is not None]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("doctor", epilog=ENDS)
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument(
        "--record",
        type=command.output_file,
        default="",
        help="FILE.json: keep a chain's losses as fingerprints",
    )
    args = parser.parse_args(argv)
    if args.record:
        fingerprint.record(args.workdir, args.record)
        print(f"written to {args.record}")
        return 0
    rows = sections.rows_of(args.workdir)
    patient = Patient(args.workdir, finished.config_of(args.workdir), rows)
    symptoms, compared = examine(patient, fingerprint.shipped())
    for sentence in symptoms:
        print(f"- {sentence}")
    verdict = (
        f"{len(symptoms)} things look wrong" if symptoms else "nothing looks wrong"
    )
    print(f"{verdict} after {patient.steps} steps; {compared}")
    return 1 if symptoms else 0


def examine(patient: Patient, fingerprints: Mapping) -> tuple[list[str], str]:
    """A sentence on everything that looks wrong, and what the losses are compared with.

    Args:
        patient: the run.
        fingerprints: as `fingerprint.shipped` returns them.
    """
    losses, compared = fingerprint.compare(patient.config, patient.rows, fingerprints)
    checks = (teacher, targets, statistics, labels, rate)
    symptoms = [sentence for check in checks for sentence in check(patient)]
    return symptoms + losses, compared


def near_chance(
    value: float, chance: float, *, higher_is_better: bool, unit: str
) -> bool:
    """Whether a value is not clearly better than that of a model that knows nothing."""
    if not higher_is_better:
        return value > SHARE_OF_ERROR * chance
    least = TIMES_SCORE * chance
    if unit == "%":
        least = min(least, chance + PART_OF_WAY * (100 - chance))
    return value < least


def teacher(patient: Patient) -> list[str]:
    """A teacher that knows nothing, by the metrics of the probe before step 0."""
    config = patient.config
    if "teacher" not in config:
        return []
    path = config.teacher.checkpoint
    if path.startswith("random:"):
        return [
            f"config.teacher.checkpoint={path} is an untrained teacher: nothing can be "
            "learned from it."
        ]
    symptoms = []
    for metric, chance in patient.stage.chance.items():
        value, measured = patient.last(metric), patient.last(chance.metric)
        if metric.startswith("loss") or value is None:
            continue
        if near_chance(
            value,
            chance.value if measured is None else measured,
            higher_is_better=chance.higher_is_better,
            unit=chance.unit,
        ):
            symptoms.append(chance.warning(value))
    return symptoms


def targets(patient: Patient) -> list[str]:
    """Other target pixels than those of the recipe; the loss hardly shows it."""
    mine = errors.flatten(patient.config.to_dict())
    theirs = errors.flatten(recipes.load(patient.config.stage).to_dict())
    return [
        f"config.{key}={mine[key]}, where the recipe {patient.config.stage} has "
        f"{theirs[key]}: the losses are on another scale, and a generic teacher is "
        "to predict normalised patches, one of DMAE raw ones."
        for key in ("target", "teacher.target")
        if key in mine and key in theirs and mine[key] != theirs[key]
    ]


def statistics(patient: Patient) -> list[str]:
    """A mean or standard deviation that is not that of the pictures."""
    config = patient.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.limit = PICTURES
    data = config.data
    reads = stages.build(config).reads
    pictures = source.load(config, data.train_split, reads, evaluate=True)
    batch, _ = next(order.eval_batches(pictures, min(PICTURES, pictures.count)))
    image = batch["image"][batch["valid"]] / 255.0
    mean, std = image.mean(axis=(0, 1, 2)), image.std(axis=(0, 1, 2))
    centre = (mean - np.array(data.mean)) / np.array(data.std)
    spread = std / np.array(data.std)
    if np.all(np.abs(centre) < 0.7) and np.all((spread > 0.5) & (spread < 2)):
        return []
    listed = [", ".join(f"{value:.3f}" for value in values) for values in (mean, std)]
    return [
        f"the pictures have mean {listed[0]} and standard deviation {listed[1]}, but "
        f"config.data.mean={tuple(data.mean)} and config.data.std={tuple(data.std)}: "
        "what the network sees is not normalised (right only for weights that were "
        "trained so)."
    ]


def labels(patient: Patient) -> list[str]:
    """Labels that have nothing to do with the pictures."""
    if patient.steps < ENOUGH:
        return []
    learned = {}  # Losses near their end.
    for metric, chance in patient.stage.chance.items():
        values = patient.values(metric)
        if not metric.startswith("loss") or not values:
            continue
        loss = float(np.mean(values[-max(1, len(values) // 4) :]))
        if near_chance(loss, chance.value, higher_is_better=False, unit=""):
            return [f"after {patient.steps} steps {chance.warning(loss)}"]
        learned[metric] = loss
    if not learned:
        return []
    losses = ", ".join(f"{loss:.2f}" for loss in learned.values())
    symptoms = []
    for name, evaluator in patient.stage.evaluators.items():
        score = evaluator.score
        value = score and patient.last(f"{name}/{score.key}")
        if value is None or score.chance is None:
            continue
        if near_chance(
            value,
            score.chance,
            higher_is_better=score.higher_is_better,
            unit=score.unit,
        ):
            symptoms.append(
                f"the training pictures are learned (loss {losses}), but {score.name} "
                f"of the held-out ones is {value:.1f} {score.unit}, little better than "
                f"guessing ({score.chance:.1f} {score.unit}): the two splits number "
                "their classes differently, or the labels are shuffled."
            )
    return symptoms


def sets_rate(path: str) -> bool:
    """Whether a run is the step of a chain whose recipe sets its learning rate."""
    folder = epath.Path(workdir.absolute(path))
    if not (folder.parent.parent / finished.CHAIN).exists():
        return False
    steps = finished.chain_config(str(folder.parent.parent)).steps
    return any(
        name == folder.name and "optim.lr" in errors.flatten(dict(overrides))
        for name, _, overrides in steps
    )


def rate(patient: Patient) -> list[str]:
    """A learning rate that was not scaled with the batch.

    Rates are published for models of the published sizes. One that a chain's recipe
    sets was chosen for the batch beside it.
    """
    config = patient.config
    if config.model.size == "custom" or sets_rate(patient.workdir):
        return []
    name = finished.recipe_of(config)
    if ":" in name:  # One recipe for many models.
        name += f",model={config.model.size}"
    recipe = recipes.load(name)
    lr, batch = config.optim.lr, config.batch
    scaled = recipe.optim.lr * batch / recipe.batch
    base = recipe.optim.lr * 256 / recipe.batch
    asked = f"config.optim.lr={lr:g} with config.batch={batch}"
    if (
        math.isclose(lr, recipe.optim.lr, rel_tol=1e-3)
        and not 0.5 < batch / recipe.batch < 2
    ):
        return [
            f"{asked}: that rate is the recipe's for a batch of {recipe.batch}; scaled "
            f"with the batch it is {scaled:.3g}."
        ]
    if math.isclose(lr, base, rel_tol=1e-3) and not 0.5 < batch / 256 < 2:
        return [
            f"{asked}: that is the published base rate, which is per 256 examples; "
            f"times batch / 256 it is {scaled:.3g}."
        ]
    return []
