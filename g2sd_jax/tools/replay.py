# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a step that was not finite once more: `g2sd replay WORKDIR/replay/step_N.npz`.

In float32 first, which distinguishes a real overflow from one of the compute dtype, and
module by module, to name the first one with an output that is not finite.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from g2sd_jax import (
    checkpoint,
    command,
    core,
    nonfinite,
    parallel,
    recipes,
    stages,
    step,
)
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order, source
from g2sd_jax.weights import torch_names

FINE = "everything is finite"


def main(argv: Sequence[str]) -> int:
    """Runs `g2sd replay`."""
    parser = command.Parser("replay")
    parser.add_argument(
        "file", help="WORKDIR/replay/step_N.npz of a run that told of it"
    )
    print(run(parser.parse_args(argv).file))
    return 0


def run(path: str) -> str:
    """Reports on the step of a replay file, in a few lines."""
    replay = nonfinite.read(path)
    config = recipe(replay.config)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in replay.metrics.items())
    lines = [f"step {replay.step} of {config.stage}, as it was: {metrics}"]
    state = state_before(path, replay, config)
    for dtype in dict.fromkeys(("float32", config.compute_dtype)):
        finding = examine(replay, state, recipe(replay.config, compute_dtype=dtype))
        lines.append(f"in {dtype}: {finding}")
        if not finding.startswith(FINE):
            break
    return "\n".join(lines)


def recipe(config_json: Mapping[str, Any], **changes: Any) -> ConfigDict:
    """Rebuilds the config of a replay file, computed in the platform's default way.

    Args:
        config_json: the config as JSON keeps it, tuples as lists.
        **changes: other values of its keys.
    """

    def tuples(value):
        if isinstance(value, Mapping):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ConfigDict(recipes.rename_keys(tuples(config_json)))
    config.update(dict(remat="none", attention="auto", **changes))
    return config.lock()


def state_before(
    path: str, replay: nonfinite.Replay, config: ConfigDict
) -> core.TrainState:
    """Returns the state the step began with: saved beside its file, or recomputed.

    Args:
        path: the replay file.
        replay: its content.
        config: its recipe.
    """
    folder = nonfinite.state_of(path)
    mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=1)), jax.devices()[:1])
    stage = stages.build(config)
    program = step.build(config, stage, mesh)
    manager = checkpoint.Manager(folder or replay.workdir)
    try:
        steps = [number for number in manager.steps() if number < replay.step]
        if steps:
            state = manager.restore(program.state, steps)
        else:
            state = program.start(
                stage.warm_start(program.init(program.keys()["init"]))
            )
    finally:
        manager.close()
    first = int(state.step)
    if first == replay.step - 1:
        return state
    print(f"the state is made again from step {first}", flush=True)
    frozen, _ = stages.frozen_variables(stage, config, replay.batch, mesh)
    dataset = source.load(config, config.data.train_split, stage.reads)
    batches = batches_from(dataset, config, start=first, processes=replay.processes)
    key = program.keys()["step"]
    for _, batch in zip(range(first, replay.step - 1), batches, strict=False):
        state, _ = program.step(state, frozen, parallel.to_global(batch, mesh), key)
    return state


def batches_from(
    dataset: datasets.Dataset, config: ConfigDict, start: int, processes: int
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over the global batches of a run of several processes.

    Args:
        dataset: of the split that is trained on.
        config: the recipe.
        start: number of steps already done.
        processes: number of processes of the run; each reads its own rows of a batch.
    """
    if dataset.stream is None:  # The order is the same for any number of them.
        processes = 1
    by_process = [
        order.train_batches(dataset, config.batch, config.seed, start, i, processes)
        for i in range(processes)
    ]
    for parts in zip(*by_process, strict=True):
        yield {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }


def examine(
    replay: nonfinite.Replay, state: core.TrainState, config: ConfigDict
) -> str:
    """Names what is not finite first: parameters, a module, a term, or a gradient."""
    bad_names = nonfinite_names(
        torch_names.to_torch(jax.device_get(state.params), None)
    )
    if bad_names:
        return f"the parameters themselves are not finite, {bad_names[0]} among them"
    stage = stages.build(config)
    mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=1)), jax.devices()[:1])
    frozen, _ = stages.frozen_variables(stage, config, replay.batch, mesh)
    batch = jax.tree.map(jnp.asarray, replay.batch)
    draws = stage.draw(jax.random.fold_in(replay.key, replay.step - 1), batch)
    modules = Modules(frozen)
    # Eager, so that every module shows its numbers, each block of a loop on its own.
    with jax.disable_jit(), nn.intercept_methods(modules):
        _, (_, metrics) = stage.loss(
            state.params, state.model_state, frozen, batch, draws, state.step
        )
    if modules.bad:
        return f"the first module that is not finite is {modules.bad[0]}"
    terms = nonfinite_names(jax.device_get(metrics))
    if terms:
        return f"every module is finite, but {', '.join(terms)} is not"

    def gradient(batch, draws):
        loss = lambda params: stage.loss(
            params, state.model_state, frozen, batch, draws, state.step
        )[0]
        return jax.grad(loss)(state.params)

    parts = config.accumulate
    mean = jax.jit(lambda b, d: step.mean_over(gradient, b, d, parts, stage.group))
    gradients = torch_names.to_torch(jax.device_get(mean(batch, draws)), None)
    bad_names = nonfinite_names(gradients)
    if bad_names:
        # The backward pass meets the last module first.
        place = {name: position for position, name in enumerate(modules.names)}
        last = max(bad_names, key=lambda name: place.get(name.rpartition(".")[0], -1))
        return (
            f"the loss is finite ({float(metrics['loss']):.4g}), its gradient is not; "
            f"the backward pass meets {last} first ({len(bad_names)} parameters in all)"
        )
    return f"{FINE}, the loss is {float(metrics['loss']):.4g}"


def nonfinite_names(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the arrays with a value that is not finite."""
    return [name for name, x in arrays.items() if not np.isfinite(x).all()]


class Modules:
    """A Flax interceptor that collects the names of modules with bad outputs.

    Args:
        frozen: variables of the models that are not trained.

    Attributes:
        names: names of all modules, in the order of their calls.
        bad: those with an output that is not finite.
    """

    def __init__(self, frozen: chex.ArrayTree):
        self.names, self.bad = [], []
        self._leaves = {id(leaf) for leaf in jax.tree.leaves(frozen)}
        self._calls = {}  # path -> how often it was called, in this model
        self._frozen = False

    def __call__(self, call, args, kwargs, context):
        scope = context.module.scope
        if scope is None or context.method_name != "__call__":
            return call(*args, **kwargs)
        if not scope.path:  # A model begins.
            self._calls = {}
            weights = jax.tree.leaves(scope.variables().get("params", {}))
            self._frozen = any(id(leaf) in self._leaves for leaf in weights)
        out = call(*args, **kwargs)
        leaves = [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return out  # Only its shapes were asked for.
        name = self._name(scope.path, context.module)
        self.names.append(name)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
            self.bad.append(name)
        return out

    def _name(self, path: tuple[str, ...], module: nn.Module) -> str:
        """Names a module as in PyTorch, `blocks.3.attn.qkv`, by counting its calls."""
        count = self._calls[path] = self._calls.get(path, -1) + 1
        parts = list(path)
        for position, part in enumerate(path):
            if part in torch_names.STACKED:  # A loop over blocks has but one module.
                parts.insert(position + 1, str(count))
                break
        name = ".".join(parts) or type(module).__name__
        return f"{name} of what is frozen" if self._frozen else name
