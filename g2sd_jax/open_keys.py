# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Keys that a recipe leaves open (None): read from the data, or from the run before."""

import functools
import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from g2sd_jax import parallel, recipes, step, workdir
from g2sd_jax.data import source

COUNTED = ("train_examples", "classes")  # Keys of config.data.
SHORTEST_WARMUP = 0.1  # Share of a run that warms up, where the recipe asks for all.


def fill(config: ConfigDict, path: str) -> ConfigDict:
    """Fills the open keys of a config, in place; its `config.json` then holds them.

    The examples of an epoch and the classes are those of the run before, if there was
    one in the workdir, else what `config.data.source` holds. A warm-up that would not
    end before the run does is cut to a tenth of it; a run that is continued to a later
    end keeps its own. Every change is printed.

    Args:
        config: the recipe.
        path: the workdir; nothing need be there.
    """
    stored = stored_config(path)
    with config.unlocked():
        if stored:
            set_open(config, stored.get("data", {}))
        fill_from_data(config)
        if stored:
            keep_warmup(config, stored)
        cut_warmup(config)
        cut_min_lr(config)
    return config


def stored_config(path: str) -> ConfigDict | None:
    """The config of the run in the workdir `path`; None where no run has begun."""
    return recipes.from_workdir(path) if workdir.claimed(path) else None


def check_length(config: ConfigDict, path: str) -> None:
    """Refuses to end the run in the workdir `path` earlier; tells of a later end.

    Args:
        config: the recipe, which `workdir.check` has accepted.
        path: the workdir; nothing need be there.
    Raises:
        ValueError: the run was begun with more steps.
    """
    stored = stored_config(path)
    if not stored:
        return
    (_, before), (_, total) = step.count_steps(stored), step.count_steps(config)
    if total < before:
        raise ValueError(
            f"--workdir={path} was begun with {before} steps, now {total} are asked "
            f"for; use config.total_steps={before} or more, or another workdir."
        )
    if total > before:
        parallel.print_once(
            f"{path} was begun with {before} steps and goes on to step {total}: the "
            f"learning rate was that of a schedule of {before} steps up to here, and "
            f"is that of {total} from here on"
        )


def fill_from_data(config: ConfigDict) -> None:
    """Sets open keys of `config.data` by what `config.data.source` holds."""
    if None not in (config.data[key] for key in COUNTED):
        return
    values = dict(zip(COUNTED, source.count(config), strict=True))
    counted = set_open(config, values)
    parallel.print_once(f"read from the data: {_listing(counted)}")


def assume(config: ConfigDict) -> ConfigDict:
    """Copies a config with its open keys set to `config.data.assumed`, and says so.

    For programs that are measured or planned without data.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        assumed = set_open(config, config.data.get("assumed", {}))
    if assumed:
        _print_assumed(_listing(assumed))
    return config.lock()


def set_open(config: ConfigDict, values: Mapping[str, int | None]) -> dict[str, int]:
    """Sets those keys of `config.data` that are None; returns what was set, by key."""
    chosen = {
        f"data.{key}": values[key]
        for key in COUNTED
        if config.data[key] is None and values.get(key) is not None
    }
    for key, value in chosen.items():
        config.data[key.removeprefix("data.")] = value
    return chosen


def keep_warmup(config: ConfigDict, stored: ConfigDict) -> None:
    """Keeps the warm-up that `cut_warmup` made, if the run has become longer since."""
    per_epoch, total = step.count_steps(config)
    asked, begun = config.optim.warmup_epochs, stored.optim.warmup_epochs
    steps = round(begun * per_epoch / SHORTEST_WARMUP)  # Of the run that was begun.
    cut = math.isclose(begun * per_epoch, SHORTEST_WARMUP * steps)
    if cut and 0 < steps < total and steps <= asked * per_epoch:
        config.optim.warmup_epochs = begun
        parallel.print_once(
            f"config.optim.warmup_epochs={asked:g} stays {begun:.4g}, to which it was "
            f"cut when the run was to have {steps} steps"
        )


def cut_warmup(config: ConfigDict) -> None:
    """Shortens a warm-up that would not end before the run does."""
    per_epoch, total = step.count_steps(config)
    epochs, warmup = total / per_epoch, config.optim.warmup_epochs
    if warmup < epochs:
        return
    config.optim.warmup_epochs = SHORTEST_WARMUP * epochs
    parallel.print_once(
        f"config.optim.warmup_epochs={warmup:g} is as long as the run ({epochs:.4g} "
        f"epochs) or longer: cut to {config.optim.warmup_epochs:.4g}"
    )


def cut_min_lr(config: ConfigDict) -> None:
    """Lets a schedule end at 0 whose learning rate a small batch made very small."""
    lr, min_lr = config.optim.lr, config.optim.get("min_lr", 0.0)
    if min_lr <= lr:
        return
    parallel.print_once(
        f"config.optim.min_lr={min_lr:g} is above config.optim.lr={lr:g} of a batch of "
        f"{config.batch}: cut to 0"
    )
    config.optim.min_lr = 0.0


def _listing(values: Mapping[str, int]) -> str:
    return ", ".join(f"config.{key}={value}" for key, value in values.items())


@functools.cache  # The verbs that measure open a recipe more than once.
def _print_assumed(listing: str) -> None:
    parallel.print_once(f"no data are read: {listing} assumed")
