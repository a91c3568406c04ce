# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses at given steps of runs that were healthy, and how another run compares.

`configs/fingerprints.json` holds what `g2sd doctor CHAIN --record=FILE` measured over a
chain's seeds, and the few values the authors' logs give. A step's config is the
recipe's own, so that a run which differs is told in which keys.
"""

import json
import os
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from g2sd_jax import core, recipes, workdir
from g2sd_jax.tools import central, finished, sections

FILE = recipes.ROOT / "configs" / "fingerprints.json"
STEPS = (50, 100, 150, 200, 300, 500, 1000, 1500)  # That are kept, and the last.
SCORES = ("/top1", "/mIoU")
SLACK = 0.25  # A value may leave the seeds' range by this share of it.
# What a run may have otherwise: where it is, what it starts from, how it is watched.
IGNORED = ("seed", "init_from", "teacher.checkpoint", "encoder.checkpoint", "signal")
IGNORED += ("eval_epochs", "data.path", "nonfinite", *core.MAY_CHANGE)


def shipped() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def record(root: str, path: str) -> None:
    """Writes the range over the seeds of every step of the finished chain in `root`."""
    config = finished.chain_config(root)
    steps = {}
    for name, *_ in config.steps:
        runs = [os.path.join(root, f"seed{seed}", name) for seed in config.seeds]
        steps[name] = ranges([sections.rows_of(run) for run in runs])
    environment = os.path.join(root, "environment.json")
    made = sections.versions(central.read_json(environment))
    seeds = ", ".join(map(str, config.seeds))
    workdir.write_json(path, dict(made=f"seeds {seeds} on {made}", steps=steps))


def ranges(runs: Sequence[Sequence[Mapping]]) -> dict:
    """{metric: {step: [lowest, highest]}} of losses and judgements."""
    found = {}
    last = max(row["step"] for row in runs[0])
    for rows in runs:
        for row in rows:
            if row["step"] not in (0, *STEPS, last):
                continue
            for key, value in row.items():
                if key == "loss" or key.endswith(SCORES) or "_error" in key:
                    found.setdefault(key, {}).setdefault(row["step"], []).append(value)
    return {
        key: {
            str(step): [float(f"{end(each):.4g}") for end in (min, max)]
            for step, each in values.items()
        }
        for key, values in found.items()
    }


def compare(config: ConfigDict, rows, prints: Mapping) -> tuple[list[str], str]:
    """Sentences on losses out of range, and what they were compared with.

    Args:
        config: the run's.
        rows: of its metrics.jsonl.
        prints: of `shipped`.
    """
    known = nearest(config, prints["measured"])
    if known is None:
        return published(config, rows, prints["published"])
    name, expected, differ = known
    if not any(row["step"] in expected and "loss" in row for row in rows):
        first = min(expected)
        return [], f"{name} is like it, but no loss of step {first} or so was logged"
    wrong = outside(rows, expected)
    if not wrong:
        return [], f"the losses are those of {name}"
    step, value, (low, high) = wrong[-1]
    said = f"at step {step} the loss is {value:.4g}, where {name} has "
    said += f"{low:.4g} to {high:.4g}; " if high > low else f"{low:.4g}; "
    if differ:
        said += "the config differs from that recipe's in " + ", ".join(differ) + "."
    else:
        said += "the config is that recipe's, so look at the data and the weights."
    return [said], f"compared with {name}"


def nearest(config: ConfigDict, measured: Mapping):
    """(name, {step: range}, differing keys) of the recipe most like `config`, or None.

    Recipes of another stage, data source or architecture are not comparable.
    """
    mine = comparable(config)
    found = []
    for chain, each in measured.items():
        for step, values in each["steps"].items():
            theirs = comparable(config_of(chain, step))
            fixed = lambda flat: {
                key: value
                for key, value in flat.items()
                if key in ("stage", "data.source") or "model." in key
            }
            if fixed(mine) != fixed(theirs):
                continue
            keys = sorted(mine.keys() | theirs.keys())
            differ = [
                f"config.{key}={mine.get(key, 'absent')} ({theirs.get(key, 'absent')})"
                for key in keys
                if mine.get(key) != theirs.get(key)
            ]
            found.append((f"{chain} {step}", values["loss"], differ))
    if not found:
        return None
    best = min(len(differ) for *_, differ in found)
    chosen = [each for each in found if len(each[2]) == best]
    # Two steps of one config start from other weights: both ranges are healthy.
    merged = {}
    for _, values, _ in chosen:
        for step, (low, high) in values.items():
            was = merged.get(int(step), (low, high))
            merged[int(step)] = (min(low, was[0]), max(high, was[1]))
    return " or ".join(name for name, *_ in chosen), merged, chosen[0][2]


def config_of(chain: str, step: str) -> ConfigDict:
    """The config of a chain's step; what earlier steps fill in stays empty."""
    steps = {name: rest for name, *rest in recipes.load(chain).steps}
    spec, overrides = core.lookup(f"step of {chain}", step, steps)
    given = {
        key: value
        for key, value in core.flatten(overrides).items()
        if not str(value).startswith("{")
    }
    return recipes.load(spec, given)


def comparable(config: ConfigDict) -> dict:
    """The keys that decide a loss, flat, as JSON keeps them."""
    return {
        key: value
        for key, value in core.flatten(workdir.plain(config)).items()
        if not any(key == name or key.startswith(f"{name}.") for name in IGNORED)
    }


def outside(rows, expected: Mapping) -> list[tuple]:
    """(step, loss, range) of every logged loss that left its range."""
    found = []
    for row in rows:
        if row["step"] in expected and row.get("loss") is not None:
            low, high = expected[row["step"]]
            if not low * (1 - SLACK) <= row["loss"] <= high * (1 + SLACK):
                found.append((row["step"], row["loss"], (low, high)))
    return found


def published(config: ConfigDict, rows, known: Sequence[Mapping]):
    """The same against what the authors' logs say of ImageNet-1k."""
    mine = dict(stage=config.stage, examples=config.data.train_examples)
    mine["size"] = config.model.size
    for each in known:
        if any(mine[key] != value for key, value in each["of"].items()):
            continue
        epoch = max(1, config.data.train_examples // config.batch)
        after = each["after_epochs"] * epoch
        values = [
            row[each["metric"]]
            for row in rows
            if row.get(each["metric"]) is not None and row["step"] >= after
        ]
        low, high = each["healthy"]
        if values and not low <= values[-1] <= high:
            return [
                f"{each['metric']} is {values[-1]:.3g}, and a healthy run has "
                f"{low:g} to {high:g} after {each['after_epochs']:g} epochs "
                f"({each['source']}): {each['otherwise']}"
            ], f"compared with {each['source']}"
        if values:
            return [], f"the losses are those of {each['source']}"
    return [], "no fingerprint fits its stage, data and architecture"
