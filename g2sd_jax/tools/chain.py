# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a chain of recipes: `g2sd chain --config=CHAIN --workdir=DIR`.

A chain is a config with `steps = ((name, "recipe:arguments", overrides), ...)`, run for
each of `seeds`, in one process, in `DIR/seedN/name`. `"{name}"` in an override is the
workdir of that earlier step. Killed at any time, it goes on where it was.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import cli, cluster, core, recipes, train, workdir
from g2sd_jax.tools import central, finished, report

KEYS = ("seeds", "steps", "rows", "reconstructions", "title", "note")
KEYS += ("cache_dir", "progress")


class Step(NamedTuple):
    """One run of a chain, ready to start."""

    name: str  # `seed0/teacher`, which is also its folder
    recipe: str
    config: ConfigDict
    workdir: str


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("chain")
    cluster.arguments(parser)
    parser.add_argument(
        "--workdir", required=True, help="folder of the chain; one in it is continued"
    )
    args = recipes.parse(parser, argv)
    with cluster.joined(args):
        run(args.config, args.workdir)
    return 0


def run(config: ConfigDict, root: str) -> None:
    """Trains what is not done yet, then writes the report and prints its table."""
    if workdir.remote(root):
        raise ValueError(
            f"--workdir={root}: a chain keeps its report beside its runs, so it "
            "takes a folder of this machine; g2sd train takes a bucket."
        )
    root = os.path.abspath(root)
    steps = plan(config, root)  # All of them: a mistake is told before any training.
    workdir.claim(identity(config), root)
    if jax.process_index() == 0:  # For what asks a chain later.
        workdir.write_json(os.path.join(root, finished.CHAIN), workdir.plain(config))
    path = epath.Path(root) / report.SECONDS
    seconds = workdir.read_json(path) if path.exists() else {}
    for position, step in enumerate(steps, start=1):
        done = (epath.Path(step.workdir) / train.DONE).exists()
        told = "done before" if done else step.recipe
        print(f"[{position}/{len(steps)}] {step.name}: {told}", flush=True)
        began = time.perf_counter()
        try:
            train.run(step.config, step.workdir)
        finally:  # A step that is told to leave goes on in another leg: both count.
            if not done and jax.process_index() == 0:
                leg = time.perf_counter() - began
                seconds[step.name] = seconds.get(step.name, 0.0) + leg
                workdir.write_json(path, seconds)
    if jax.process_index() == 0:
        print(report.write(config, root), flush=True)


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
    planned = []
    for seed in config.seeds:
        made = {}  # name -> workdir of the steps before
        for name, spec, overrides in config.steps:
            if name in made:
                raise ValueError(f"config.steps has two steps named {name!r}.")
            folder = os.path.join(root, f"seed{seed}")
            try:
                given = fill(overrides, made) | shared(config, root, seed)
                step = recipes.load(spec, given)
            except ValueError as error:
                raise ValueError(f"step {name!r} of the chain: {error}") from error
            if "stage" not in step:
                raise ValueError(f"step {name!r} of the chain: {spec} has no stage.")
            made[name] = os.path.join(folder, name)
            planned.append(Step(f"seed{seed}/{name}", spec, step, made[name]))
    central.check_rows(config)
    return planned


def fill(overrides: Mapping, made: Mapping[str, str]) -> dict:
    """`{"a.b": value}` with each `{name}` in a text replaced by that step's workdir.

    `{split}` stays: it is the data source's own, one archive per split.
    """

    def workdir_of(match):
        if match[1] == "split":
            return match[0]
        return core.lookup("placeholder", match[1], made)

    return {
        key: re.sub(r"\{(\w*)\}", workdir_of, value)
        if isinstance(value, str)
        else value
        for key, value in core.flatten(overrides).items()
    }


def shared(config: ConfigDict, root: str, seed: int) -> dict:
    """Keys that every step gets; one cache, for a seed changes no program."""
    cache = config.cache_dir
    if cache is None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.path.join(root, "cache")
    return dict(seed=seed, cache_dir=cache, progress=config.progress)


def identity(config: ConfigDict) -> ConfigDict:
    """What changes a number, by step and key, so that a difference names the key."""
    steps = {
        name: dict(recipe=spec, **nested(overrides))
        for name, spec, overrides in config.steps
    }
    return ConfigDict(dict(seeds=config.seeds, steps=steps))


def nested(overrides: Mapping) -> dict:
    """`{"a.b": value}` as `{"a": {"b": value}}`."""
    tree = {}
    for key, value in core.flatten(overrides).items():
        *groups, leaf = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return tree
