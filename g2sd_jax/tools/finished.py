# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A trained stage or a weight file, ready to be asked: how the verbs are told which."""

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import checkpoint, core, metrics, parallel, recipes, stages, workdir
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import augment
from g2sd_jax.weights import agreement, graft, loading, torch_names

CHAIN = "chain.json"  # The whole config of a chain, in its folder.
RECIPES = {  # What a file's `kind` stands for.
    "vit": "finetune",
    "mae": "pretrain",
    "segmentor": "finetune:task=segmentation",
}


class Finished(NamedTuple):
    """A stage with the weights it has learned."""

    source: str  # the workdir or file of the weights
    config: ConfigDict
    stage: core.Stage
    variables: dict
    describe: dict  # of the checkpoint: architecture, class names, target, ...

    @property
    def params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    @property
    def spec(self) -> augment.Spec:
        """How a picture is prepared for this model, as for evaluation."""
        return augment.spec(self.config, train=False)

    @property
    def segments(self) -> bool:
        """Whether its answer is a class per pixel."""
        return "taps" in self.config.model

    def model(self) -> vit.Vit | mae.Mae:
        """The module its parameters fill; a distilled student's feature heads go."""
        machine = layers.machine(self.config)
        if self.segments:
            raise ValueError(
                f"{self.source} is a segmentor, whose encoder this verb can not see "
                "alone; g2sd evaluate judges it, or name the run its encoder comes "
                "from."
            )
        if "decoder" in self.config.model:
            whole = mae.autoencoder(self.config.model, **machine)
            held = self.variables["params"]
            depth = whole.dec_depth if "decoder_embed" in held else 0
            return whole.clone(dec_depth=depth, pixel_head="decoder_pred" in held)
        if "head" in self.variables["params"] and self.config.stage == "linprobe":
            raise ValueError(
                f"{self.source} is a linear probe and holds no encoder; ask the run "
                f"its encoder comes from, {self.config.encoder.checkpoint}."
            )
        return vit.classifier(self.config.model, self.config.data.classes, **machine)

    def frozen(self, evaluator: core.Evaluator) -> dict:
        """What `evaluator` looks at beside the variables; loaded only if it does."""
        if not evaluator.frozen:
            return {}
        frozen = self.stage.trim(self.stage.frozen())
        return parallel.cast(frozen, layers.machine(self.config)["dtype"])


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Reads a command line that names what to ask; `args.finished` is that.

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


def choose(run: str, path: str, recipe: str, overrides) -> Finished:
    """The `Finished` of a command line's three options."""
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
    if path and not recipe and not run and epath.Path(path).is_dir():
        run, path = path, ""
    if run:
        config = config_of(run, overrides)
        return from_file(path, config) if path else from_run(run, config)
    if recipe:
        return from_file(path, recipes.load(recipe, overrides))
    return from_file(path, described(path, overrides))


def expand(workdirs: Sequence[str]) -> tuple[dict[str, str], str]:
    """{name: workdir of a run} and, if one is the folder of a chain, that folder.

    A chain stands for the models of its table, those of its first seed.
    """
    named, chain = {}, ""
    for path in workdirs:
        if not (epath.Path(path) / CHAIN).exists():
            named[epath.Path(workdir.absolute(path)).name] = path
            continue
        if len(workdirs) > 1:
            raise ValueError(f"{path} is a chain's folder; name it alone.")
        chain, config = path, chain_config(path)
        first = os.path.join(path, f"seed{config.seeds[0]}")
        named = {method: os.path.join(first, step) for method, step in config.rows}
    if len(named) < len(workdirs):  # Two folders of one name.
        named = {str(epath.Path(path)): path for path in workdirs}
    return named, chain


def chain_config(path: str) -> ConfigDict:
    """The config that a chain left in its folder."""
    return ConfigDict(workdir.read_json(epath.Path(path) / CHAIN))


def config_of(run: str, overrides=None) -> ConfigDict:
    """The config of the run in `run`, or of that of `WORKDIR/checkpoints/STEP`."""
    run, _ = checkpoint.split_step(run)
    config = recipes.of_run(run)
    if "stage" not in config:
        step = os.path.join(run, f"seed{config.seeds[0]}", next(iter(config.steps)))
        raise ValueError(
            f"{run} is a chain's folder; name one of its steps, such as {step}."
        )
    return recipes.changed(completed(config, run), overrides)


def completed(config: ConfigDict, run: str) -> ConfigDict:
    """An older run's config with the keys that recipes were given since then."""
    today = core.flatten(recipes.load(recipe_of(config)).to_dict())
    mine = core.flatten(config.to_dict())
    # Only of groups it has: a run without a decoder is not to get one.
    groups = {key.rpartition(".")[0] for key in mine}
    added = {
        key: value
        for key, value in today.items()
        if key not in mine and key.rpartition(".")[0] in groups
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
        metrics.say(
            f"{run}/config.json is older than {', '.join(sorted(added))}: taken as "
            f"the recipe {recipe_of(config)} has them"
        )
    return config


def recipe_of(config: ConfigDict) -> str:
    """The shipped recipe that a run's config has most in common with."""
    if config.stage == "finetune" and "task" in config:
        return f"finetune:task={config.task}"
    return config.stage


def from_run(run: str, config: ConfigDict | None = None) -> Finished:
    """A run by its workdir."""
    config = config_of(run) if config is None else config
    stage = stages.build(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0), {})
    variables, describe = loading.run_variables(run, shapes, "--workdir")
    return Finished(run, config, stage, variables, describe)


def from_file(path: str, config: ConfigDict) -> Finished:
    """A weight file, or another run's weights, in the stage of `config`."""
    stage = stages.build(config)
    weights = loading.read(path, "--checkpoint")
    agreement.pictures(weights, config, "--checkpoint")
    shapes = jax.eval_shape(stage.init, jax.random.key(0), {})
    kept = sorted(set(shapes) - {"params"})
    names = torch_names.shapes({key: shapes[key] for key in kept})
    if names.keys() - weights.arrays.keys():
        raise ValueError(
            f"--checkpoint={path!r}: stage {config.stage} also keeps "
            f"{', '.join(kept)}, which a weight file lacks; name the run's --workdir."
        )
    variables = graft.onto(shapes, weights, grid=vit.grid(config.model))
    describe = {**stage.describe, "stage": config.stage, **weights.describe}
    return Finished(path, config, stage, variables, describe)


def described(path: str, overrides) -> ConfigDict:
    """A recipe for a file that says what it is, as files of this project do."""
    held = loading.read(path, "--checkpoint")
    describe = held.describe
    if describe.get("kind") not in RECIPES or "model" not in describe:
        raise ValueError(
            f"--checkpoint={path!r} does not say what it is; add the recipe it fits, "
            "such as --config=finetune:model=b16."
        )
    metrics.say(f"{path} describes itself: {describe.get('stage', describe['kind'])}")
    recipe = RECIPES[describe["kind"]]
    own = recipes.load(recipe)
    model = {
        key: describe["model"][key] for key in own.model if key in describe["model"]
    }
    data = dict(mean=tuple(describe["mean"]), std=tuple(describe["std"]))
    data["classes"] = describe.get("classes", 0)
    known = dict(model=model, data=data, compute_dtype="float32")
    if "target" in describe and "target" in own:
        known["target"] = describe["target"]
    if "inference" in describe and "inference" in own:
        known["inference"] = describe["inference"]
        if not any(name.startswith("auxiliary_head.") for name in held.arrays):
            known["loss"] = dict(auxiliary=0.0)
    # JSON has no tuples.
    plain = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in core.flatten(known).items()
    }
    return recipes.load(recipe, plain | dict(overrides))
