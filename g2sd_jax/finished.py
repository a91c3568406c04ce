# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens trained stages and weight files: how the verbs are told which one to ask."""

import argparse
import os
from collections.abc import Mapping, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import (
    checkpoint,
    errors,
    json_files,
    kinds,
    parallel,
    recipes,
    stages,
    tasks,
    workdir,
)
from g2sd_jax.models import vit
from g2sd_jax.weights import agreement, graft, loading, parts, reading, torch_names

CHAIN = "chain.json"  # The whole config of a chain, in its folder.
MEND_CHAIN = "start the chain's own command once more: it writes the file anew"
Finished = kinds.Finished  # All that is opened here.


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line that names a model; `args.finished` is that model.

    `--workdir` alone is a run as it is. `--checkpoint` alone is a file that describes
    itself. `--config` with `--checkpoint` is a foreign file and the recipe it fits.
    """
    parser.add_argument("--workdir", default="", help="of the run to ask")
    parser.add_argument(
        "--checkpoint", default="", help="other weights than the workdir's: a file"
    )
    parser.add_argument(
        "--config", default="", metavar="RECIPE", help="that --checkpoint fits"
    )
    rest, overrides = recipes.split(parser, argv)
    args = parser.parse_args(rest)
    args.finished = choose(args.workdir, args.checkpoint, args.config, overrides)
    return args


def choose(run: str, path: str, recipe: str, overrides: Mapping) -> Finished:
    """Opens the model that a command line names.

    Args:
        run: its --workdir, or "".
        path: its --checkpoint, or "".
        recipe: its --config, or "".
        overrides: values by key of the config.
    """
    if not run and not path:
        raise ValueError(
            "name what to ask: --workdir=DIR of a run, or --checkpoint=FILE (with "
            "--config=RECIPE, unless the file describes itself)."
        )
    if run and recipe:
        raise ValueError(
            f"--workdir={run} has its own config; leave --config={recipe} out, or "
            "name the weights with --checkpoint instead."
        )
    folder = epath.Path(path).is_dir() and not reading.is_directory(path)
    if folder and not recipe and not run:
        run, path = path, ""
    if run:
        config = config_of(run, overrides)
        return from_file(path, config) if path else from_run(run, config)
    if recipe:
        return from_file(path, recipes.load(recipe, overrides))
    return from_file(path, recipe_of_file(path, overrides))


def expand(workdirs: Sequence[str]) -> tuple[dict[str, str], str]:
    """Names the workdirs of runs; the folder of a chain stands for several.

    Returns:
        {name: workdir}, and the folder of the chain, or "". Of a chain these are the
        models of its table, trained from its first seed.
    """
    workdir_of, chain = {}, ""
    for path in workdirs:
        if not (epath.Path(path) / CHAIN).exists():
            workdir_of[epath.Path(workdir.absolute(path)).name] = path
            continue
        if len(workdirs) > 1:
            raise ValueError(f"{path} is a chain's folder; name it alone.")
        chain, config = path, chain_config(path)
        workdir_of = {
            name: chain_runs(config, path, step)[0] for name, step in config.rows
        }
    if len(workdir_of) < len(workdirs):  # Two folders of one name.
        workdir_of = {str(epath.Path(path)): path for path in workdirs}
    return workdir_of, chain


def chain_config(path: str) -> ConfigDict:
    """The config that a chain left in its folder."""
    file = epath.Path(path) / CHAIN
    stored = json_files.read(file, MEND_CHAIN)
    # What every reader of a chain relies on.
    lists = {
        "seeds": lambda seed: isinstance(seed, int),
        "steps": lambda step: [*map(type, step)] == [str, str, dict],
        "rows": lambda row: [*map(type, row)] == [str, str],
    }
    for key, fits in lists.items():
        values = stored.get(key)
        try:
            # Without labels there is no table.
            fit = isinstance(values, list) and (values or key == "rows")
            fit = fit and all(map(fits, values))
        except TypeError:
            fit = False
        if not fit:
            reason = f"{key} is {repr(values)[:40]}, which no chain has"
            raise json_files.damaged(file, reason, MEND_CHAIN)
    return ConfigDict(stored)


def chain_runs(config: ConfigDict, path: str, name: str) -> list[str]:
    """The workdirs of a chain's step, `PATH/seedN/STEP`.

    Args:
        config: of the chain.
        path: its folder.
        name: of the step.

    Returns:
        One for each of `config.seeds`; a single one where the step's overrides fix the
        seed, as of a teacher that all students share.
    """
    overrides = next(step[2] for step in config.steps if step[0] == name)
    seeds = [overrides["seed"]] if "seed" in overrides else config.seeds
    return [os.path.join(path, f"seed{seed}", name) for seed in seeds]


def config_of(run: str, overrides: Mapping | None = None) -> ConfigDict:
    """The config of a run, by its workdir or `WORKDIR/checkpoints/STEP`."""
    run, _ = checkpoint.split_step(run)
    config = recipes.from_workdir(run)
    if "stage" not in config:
        step = os.path.join(run, f"seed{config.seeds[0]}", next(iter(config.steps)))
        raise ValueError(
            f"{run} is a chain's folder; name one of its steps, such as {step}."
        )
    return recipes.with_overrides(fill_new_keys(config, run), overrides)


def fill_new_keys(config: ConfigDict, run: str) -> ConfigDict:
    """Adds to an older run's config the keys that its recipe has gained since."""
    shipped = errors.flatten(recipes.load(recipe_of(config)).to_dict())
    present = errors.flatten(config.to_dict())
    # Only in groups it has: a run without a decoder is not to get one.
    groups = {key.rpartition(".")[0] for key in present}
    added = {
        key: value
        for key, value in shipped.items()
        if key not in present and key.rpartition(".")[0] in groups
        if not key.startswith(("model.", "teacher.model.", "optim.", "distill."))
    }
    with config.unlocked():
        for key, value in added.items():
            *path, leaf = key.split(".")
            group = config
            for name in path:
                group = group[name]
            group[leaf] = value
    if added:
        parallel.print_once(
            f"{run}/config.json is older than {', '.join(sorted(added))}: taken as "
            f"the recipe {recipe_of(config)} has them"
        )
    return config


def recipe_of(config: ConfigDict) -> str:
    """The recipe of a run's stage, or of its task where the stage serves any task."""
    if config.stage == "finetune" and "task" in config:
        return tasks.recipe(config.task)
    return config.stage


def kind_of(run: str) -> kinds.Kind:
    """The kind of network that a run trains, by its workdir; it needs no checkpoint."""
    return kinds.by_name(stages.build(config_of(run)).describe["kind"])


def from_run(run: str, config: ConfigDict | None = None) -> Finished:
    """Opens a run by its workdir; `config` replaces its own."""
    config = config_of(run) if config is None else config
    stage = stages.build(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    variables, describe = loading.run_variables(run, shapes, "--workdir")
    return Finished(run, config, stage, variables, describe)


def from_file(path: str, config: ConfigDict) -> Finished:
    """Opens a weight file, or another run's weights, in the stage of `config`.

    Classes that the config leaves open are those of the file's head.
    """
    weights = loading.read(path, "--checkpoint")
    if config.data.classes is None:
        config = recipes.with_overrides(
            config.copy_and_resolve_references(),
            {"data.classes": next(filter(None, map(weights.classes, parts.HEADS)), 0)},
        )
    stage = stages.build(config)
    agreement.check_normalisation(weights, config, "--checkpoint")
    agreement.check_heads(weights, config.model, "config.model")
    tell_other_rules(weights, config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    collections = sorted(set(shapes) - {"params"})
    names = torch_names.shapes({key: shapes[key] for key in collections})
    if names.keys() - weights.arrays.keys():
        raise ValueError(
            f"--checkpoint={path!r}: stage {config.stage} also keeps "
            f"{', '.join(collections)}, which a weight file lacks; name the run's "
            "--workdir."
        )
    # A detector's table of positions is that of its pre-training.
    grid = tuple(stage.describe.get("grid") or vit.grid(config.model))
    variables = graft.onto(shapes, weights, grid=grid)
    describe = {**stage.describe, "stage": config.stage, **weights.describe}
    return Finished(path, config, stage, variables, describe)


def recipe_of_file(path: str, overrides: Mapping) -> ConfigDict:
    """The recipe, and its keys, that a file's own description asks for."""
    weights = loading.read(path, "--checkpoint")
    describe = weights.describe
    name = describe.get("kind")
    kind = kinds.by_name(name) if name in kinds.KINDS else None
    settings = dict(kind.settings(weights)) if kind else {}
    model = {**settings.pop("model", {}), **describe.get("model", {})}
    if kind is None or not kind.recipe or not model:
        raise ValueError(
            f"--checkpoint={path!r} does not say what it is; add the recipe it fits, "
            "such as --config=finetune:model=b16."
        )
    parallel.print_once(f"{path} describes itself: {describe.get('stage', name)}")
    config = recipes.load(kind.recipe)
    settings |= dict(
        model={key: value for key, value in model.items() if key in config.model},
        data=data_of_file(weights, config),
        compute_dtype="float32",
    )
    # JSON has no tuples.
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in errors.flatten(settings).items()
    }
    return recipes.load(kind.recipe, values | dict(overrides))


def data_of_file(weights: loading.Weights, config: ConfigDict) -> dict:
    """The keys of `config.data` that a file describes: classes, and how it was judged.

    Args:
        weights: of the file.
        config: the recipe, whose normalisation is taken, and told, if the file has
            none.
    """
    describe = weights.describe
    data = dict(classes=describe.get("classes", weights.classes() or 0))
    for name in ("mean", "std"):
        if name in describe:
            data[name] = tuple(describe[name])
        else:
            parallel.print_once(
                f"{weights.source} does not say how its pictures were normalised: "
                f"config.data.{name}={tuple(config.data[name])} is taken"
            )
    rules = describe.get("data") or {}
    if not rules and describe.get("eval_crop", 1.0) < 1:  # Of an older version.
        rules = dict(source="folder", eval_crop=describe["eval_crop"])
    return data | {key: value for key, value in rules.items() if key in config.data}


def tell_other_rules(weights: loading.Weights, config: ConfigDict) -> None:
    """Prints how a file was judged, where the config reads pictures in another way."""
    rules = weights.describe.get("data") or {}
    as_json = workdir.to_json_dict(config.data)
    differences = [
        f"config.data.{key}={value!r}, not {as_json[key]!r}"
        for key, value in rules.items()
        if key in as_json and as_json[key] != value
    ]
    differences += weights.describe.get("other_rules", ())
    if differences:
        parallel.print_once(
            f"{weights.source} was judged with {'; '.join(differences)}: its answers "
            "to some pictures may differ"
        )
