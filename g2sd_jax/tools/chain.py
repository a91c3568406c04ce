# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a chain of recipes: `g2sd chain --config=CHAIN --workdir=DIR`.

A chain is a config with `steps = ((name, "recipe:arguments", overrides), ...)`, run for
each of `seeds`, in one process, in `DIR/seedN/name`. `"{name}"` in an override is the
workdir of that earlier step. A step whose overrides fix `seed` is one run, shared by
all seeds. Killed at any time, it goes on where it was.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import (
    command,
    errors,
    finished,
    json_files,
    lock,
    loop,
    recipes,
    workdir,
)
from g2sd_jax.hosts import cluster
from g2sd_jax.measure import survey
from g2sd_jax.pages import chain_report, results_table

KEYS = ("seeds", "steps", "rows", "reconstructions", "title", "note")
KEYS += ("cache_dir", "progress")


class Step(NamedTuple):
    """One run of a chain, ready to start."""

    name: str  # `seed0/teacher`, which is also its folder
    recipe: str
    config: ConfigDict
    workdir: str


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("chain")
    cluster.arguments(parser)
    parser.add_argument(
        "--workdir", required=True, help="folder of the chain; one in it is continued"
    )
    args = recipes.parse(parser, argv)
    with cluster.joined(args):
        config, facts = survey.complete(
            args.spec, args.config, args.overrides, facts_of(args.workdir)
        )
        run(config, args.workdir, facts)
    return 0


def refuse_bucket(root: str) -> None:
    """Refuses a chain's folder that is not on this machine."""
    if workdir.remote(root):
        raise ValueError(
            f"--workdir={root}: a chain keeps its report beside its runs, so it "
            "takes a folder of this machine; g2sd train takes a bucket."
        )


def facts_of(root: str) -> dict:
    """The facts that an earlier start of the chain in `root` was sized by, or {}.

    A damaged file is told of, and written anew by this start.
    """
    refuse_bucket(root)
    path = epath.Path(root) / finished.CHAIN
    if not path.exists():
        return {}
    try:
        facts = json_files.read(path).get("facts", {})
        if not isinstance(facts, Mapping):
            reason = f"facts are {repr(facts)[:40]} and no group of values"
            raise json_files.damaged(path, reason)
    except ValueError as error:
        print(f"{error} It is written anew.", flush=True)
        return {}
    return facts


def run(
    config: ConfigDict, root: str, facts: Mapping[str, object] | None = None
) -> None:
    """Trains what is not done yet, then writes the report and prints its table.

    Args:
        config: of the chain.
        root: its folder.
        facts: that the recipe was sized by, which are kept for a restart.
    """
    refuse_bucket(root)
    root = os.path.abspath(root)
    steps = plan(config, root)  # All of them: a mistake ends it before any training.
    with lock.alone_in(root):
        train_all(config, root, steps, facts or {})
        if jax.process_index() == 0:
            print(summarise(config, root, steps), flush=True)


def summarise(config: ConfigDict, root: str, steps: Sequence[Step]) -> str:
    """Writes the report; returns its table, or how features without labels did."""
    if config.rows:
        return chain_report.write(config, root)
    scores = [
        f"{step.name} {score.name} {value:.1f} {score.unit}"
        for step in steps
        for score, value in results_table.monitored(step.workdir)
    ]
    judged = "the pictures have no labels to judge by"
    if scores:
        judged = (
            "nothing was trained on labels; by a vote of its nearest neighbours among "
            f"the others, each evaluation picture: {', '.join(scores)}"
        )
    return (
        f"{judged}: the student's features are in {steps[-1].workdir}; g2sd embed "
        "writes them, g2sd report draws its run"
    )


def train_all(
    config: ConfigDict, root: str, steps: Sequence[Step], facts: Mapping[str, object]
) -> None:
    """Trains the steps that are not done, and notes how long each took.

    Args:
        config: of the chain.
        root: its folder.
        steps: of all seeds.
        facts: that the recipe was sized by.
    """
    workdir.claim(identity(config), root)
    if jax.process_index() == 0:  # For the verbs that read a chain.
        workdir.write_json(
            os.path.join(root, finished.CHAIN),
            {**workdir.to_json_dict(config), "facts": dict(facts)},
        )
    path = epath.Path(root) / chain_report.SECONDS
    seconds = json_files.read_numbers(path) if path.exists() else {}
    for position, step in enumerate(steps, start=1):
        done = (epath.Path(step.workdir) / workdir.DONE).exists()
        action = "done before" if done else step.recipe
        print(f"[{position}/{len(steps)}] {step.name}: {action}", flush=True)
        began = time.perf_counter()
        try:
            loop.run(step.config, step.workdir)
        finally:  # A step that is asked to stop goes on in another leg: both count.
            if not done and jax.process_index() == 0:
                leg = time.perf_counter() - began
                seconds[step.name] = seconds.get(step.name, 0.0) + leg
                workdir.write_json(path, seconds)


def plan(config: ConfigDict, root: str) -> list[Step]:
    """Every step of every seed, each recipe loaded and each placeholder filled."""
    if "stage" in config:
        raise ValueError(
            f"this recipe is one stage, {config.stage}, and no chain of them; run it "
            "with g2sd train."
        )
    missing = [f"config.{key}" for key in KEYS if key not in config]
    if missing:
        raise ValueError(
            f"this recipe is not a chain, for it has no {', '.join(missing)}; "
            "configs/chains/digits.py is one."
        )
    if not config.seeds or not config.steps:
        raise ValueError("config.seeds and config.steps must not be empty.")
    planned = {}  # workdir -> step
    for seed in config.seeds:
        made = {}  # name -> workdir of the steps before
        for name, spec, overrides in config.steps:
            if name in made:
                raise ValueError(f"config.steps has two steps named {name!r}.")
            number = overrides.get("seed", seed)
            folder = os.path.join(root, f"seed{number}", name)
            if folder not in planned:  # Else it is shared with a seed before.
                try:
                    filled = fill(overrides, made) | shared(config, root, number)
                    step = recipes.load(spec, filled)
                except ValueError as error:
                    raise ValueError(f"step {name!r} of the chain: {error}") from error
                if "stage" not in step:
                    raise ValueError(
                        f"step {name!r} of the chain: {spec} has no stage."
                    )
                planned[folder] = Step(f"seed{number}/{name}", spec, step, folder)
            made[name] = folder
    results_table.check_rows(config)
    return list(planned.values())


def fill(overrides: Mapping, made: Mapping[str, str]) -> dict:
    """`{"a.b": value}` with each `{name}` in a text replaced by that step's workdir.

    `{split}` stays: it is the data source's own, one archive per split.
    """

    def workdir_of(match):
        if match[1] == "split":
            return match[0]
        return errors.lookup("placeholder", match[1], made)

    return {
        key: re.sub(r"\{(\w*)\}", workdir_of, value)
        if isinstance(value, str)
        else value
        for key, value in errors.flatten(overrides).items()
    }


def shared(config: ConfigDict, root: str, seed: int) -> dict:
    """The overrides of every step; one cache, for a seed changes no program."""
    cache = config.cache_dir
    if cache is None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.path.join(root, "cache")
    return dict(seed=seed, cache_dir=cache, progress=config.progress)


def identity(config: ConfigDict) -> ConfigDict:
    """The settings that change a number, nested so that a difference names its key."""
    steps = {
        name: dict(recipe=spec, **nested(overrides))
        for name, spec, overrides in config.steps
    }
    return ConfigDict(dict(seeds=config.seeds, steps=steps))


def nested(overrides: Mapping) -> dict:
    """`{"a.b": value}` as `{"a": {"b": value}}`."""
    tree = {}
    for key, value in errors.flatten(overrides).items():
        *groups, leaf = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return tree
