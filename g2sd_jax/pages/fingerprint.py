# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses at given steps of runs that were healthy, and how another run compares.

`configs/fingerprints.json` holds what `g2sd doctor CHAIN --record=FILE` measured over a
chain's seeds, and the few values the authors' logs give. A step's config is the
recipe's own, so that a run which differs is told in which keys.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence

from ml_collections import ConfigDict

from g2sd_jax import (
    core,
    errors,
    finished,
    json_files,
    recipes,
    stages,
    workdir,
)
from g2sd_jax.pages import sections

FILE = recipes.FOLDER / "fingerprints.json"
STEPS = (50, 100, 150, 200, 300, 500, 1000, 1500)  # That are recorded, and the last.
SLACK = 0.25  # A value may leave the seeds' range by this share of it.
# Keys that change no loss or every run has its own of: paths, start weights, monitors.
IGNORED = ("seed", "init_from", "teacher.checkpoint", "encoder.checkpoint", "monitor")
IGNORED += ("eval_epochs", "data.path", "nonfinite", *core.MAY_CHANGE)


def shipped() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def record(root: str, path: str) -> None:
    """Writes the range over the seeds of every step of the finished chain in `root`."""
    config = finished.chain_config(root)
    steps = {}
    for name, *_ in config.steps:
        runs = finished.chain_runs(config, root, name)
        stage = stages.build(finished.config_of(runs[0]))
        logs = [sections.rows_of(run) for run in runs]
        steps[name] = ranges(logs, recorded_metrics(stage))
    environment = os.path.join(root, "environment.json")
    made = sections.versions(json_files.read(environment))
    seeds = ", ".join(map(str, config.seeds))
    workdir.write_json(path, dict(made=f"seeds {seeds} on {made}", steps=steps))


def recorded_metrics(stage: core.Stage) -> set[str]:
    """The loss, the first score of every evaluator, and the metrics of the probe."""
    scores = {
        f"{name}/{evaluator.score.key}"
        for name, evaluator in stage.evaluators.items()
        if evaluator.score
    }
    probed = {key for key in stage.chance if not key.startswith("loss")}
    return {"loss"} | scores | probed


def ranges(
    logs: Sequence[Sequence[Mapping]], metrics: Collection[str] = ("loss",)
) -> dict[str, dict[str, list[float]]]:
    """{metric: {step: [lowest, highest]}} over several runs.

    Args:
        logs: the rows of each run's metrics.jsonl.
        metrics: names of those to include.
    """
    values: dict[str, dict[int, list[float]]] = {}
    last = max(row["step"] for row in logs[0])
    for rows in logs:
        for row in rows:
            if row["step"] not in (0, *STEPS, last):
                continue
            for key in metrics:
                if row.get(key) is not None:
                    by_step = values.setdefault(key, {})
                    by_step.setdefault(row["step"], []).append(row[key])
    return {
        key: {
            str(step): [float(f"{end(seeds):.4g}") for end in (min, max)]
            for step, seeds in by_step.items()
        }
        for key, by_step in sorted(values.items())
    }


def compare(
    config: ConfigDict, rows: Sequence[Mapping], fingerprints: Mapping
) -> tuple[list[str], str]:
    """Sentences on losses out of range, and what they were compared with.

    Args:
        config: the run's.
        rows: of its metrics.jsonl.
        fingerprints: as `shipped` returns them.
    """
    likest = nearest(config, fingerprints["measured"])
    if likest is None:
        return compare_published(config, rows, fingerprints["published"])
    name, expected, differences = likest
    if not any(row["step"] in expected and "loss" in row for row in rows):
        first = min(expected)
        return [], f"{name} is like it, but no loss of step {first} or so was logged"
    wrong = outside(rows, expected)
    if not wrong:
        return [], f"the losses are those of {name}"
    step, value, (low, high) = wrong[-1]
    sentence = f"at step {step} the loss is {value:.4g}, where {name} has "
    sentence += f"{low:.4g} to {high:.4g}; " if high > low else f"{low:.4g}; "
    if differences:
        sentence += (
            f"the config differs from that recipe's in {', '.join(differences)}."
        )
    else:
        sentence += "the config is that recipe's, so look at the data and the weights."
    return [sentence], f"compared with {name}"


def nearest(
    config: ConfigDict, measured: Mapping
) -> tuple[str, dict[int, tuple[float, float]], list[str]] | None:
    """(name, {step: range}, differing keys) of the recipe most like `config`, or None.

    Recipes of another stage, data source or architecture are not comparable.
    """
    mine = comparable(config)
    candidates = []
    for chain, recorded in measured.items():
        for step, ranges_of in recorded["steps"].items():
            theirs = comparable(config_of(chain, step))
            fixed = lambda flat: {
                key: value
                for key, value in flat.items()
                if key in ("stage", "data.source") or "model." in key
            }
            if fixed(mine) != fixed(theirs):
                continue
            keys = sorted(mine.keys() | theirs.keys())
            differences = [
                f"config.{key}={mine.get(key, 'absent')} ({theirs.get(key, 'absent')})"
                for key in keys
                if mine.get(key) != theirs.get(key)
            ]
            candidates.append((f"{chain} {step}", ranges_of["loss"], differences))
    if not candidates:
        return None
    fewest = min(len(differences) for *_, differences in candidates)
    chosen = [candidate for candidate in candidates if len(candidate[2]) == fewest]
    # Two steps of one config start from other weights: both ranges are healthy.
    merged: dict[int, tuple[float, float]] = {}
    for _, losses, _ in chosen:
        for step, (low, high) in losses.items():
            before = merged.get(int(step), (low, high))
            merged[int(step)] = (min(low, before[0]), max(high, before[1]))
    return " or ".join(name for name, *_ in chosen), merged, chosen[0][2]


def config_of(chain: str, step: str) -> ConfigDict:
    """The config of a chain's step; keys that earlier steps fill in stay empty."""
    steps = {name: rest for name, *rest in recipes.load(chain).steps}
    spec, overrides = errors.lookup(f"step of {chain}", step, steps)
    fixed = {
        key: value
        for key, value in errors.flatten(overrides).items()
        if not str(value).startswith("{")
    }
    return recipes.load(spec, fixed)


def comparable(config: ConfigDict) -> dict:
    """The keys that decide a loss, flat, as JSON keeps them."""
    return {
        key: value
        for key, value in errors.flatten(workdir.to_json_dict(config)).items()
        if not any(key == name or key.startswith(f"{name}.") for name in IGNORED)
    }


def outside(
    rows: Sequence[Mapping], expected: Mapping[int, tuple[float, float]]
) -> list[tuple[int, float, tuple[float, float]]]:
    """(step, loss, range) of every logged loss that left its range.

    Args:
        rows: of metrics.jsonl.
        expected: {step: lowest and highest loss}.
    """
    left = []
    for row in rows:
        if row["step"] in expected and row.get("loss") is not None:
            low, high = expected[row["step"]]
            if not low * (1 - SLACK) <= row["loss"] <= high * (1 + SLACK):
                left.append((row["step"], row["loss"], (low, high)))
    return left


def compare_published(
    config: ConfigDict, rows: Sequence[Mapping], logs: Sequence[Mapping]
) -> tuple[list[str], str]:
    """As `compare`, with values that the authors' logs have for ImageNet-1k.

    Args:
        config: the run's.
        rows: of its metrics.jsonl.
        logs: a metric, its healthy range, and which runs that holds for.
    """
    mine = dict(stage=config.stage, examples=config.data.train_examples)
    mine["size"] = config.model.size
    for log in logs:
        if any(mine[key] != value for key, value in log["of"].items()):
            continue
        epoch = max(1, config.data.train_examples // config.batch)
        after = log["after_epochs"] * epoch
        values = [
            row[log["metric"]]
            for row in rows
            if row.get(log["metric"]) is not None and row["step"] >= after
        ]
        low, high = log["healthy"]
        if values and not low <= values[-1] <= high:
            return [
                f"{log['metric']} is {values[-1]:.3g}, and a healthy run has "
                f"{low:g} to {high:g} after {log['after_epochs']:g} epochs "
                f"({log['source']}): {log['otherwise']}"
            ], f"compared with {log['source']}"
        if values:
            return [], f"the losses are those of {log['source']}"
    return [], "no fingerprint fits its stage, data and architecture"
