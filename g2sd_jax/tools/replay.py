# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a step that was not finite once more: `g2sd replay WORKDIR/replay/step_N.npz`.

In float32 first, which tells a real overflow from one of the compute dtype, and module
by module, so that the first one with a value that is not finite can be named.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from g2sd_jax import checkpoint, cli, core, nonfinite, parallel, stages, step, train
from g2sd_jax.data import order, source
from g2sd_jax.weights import torch_names


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("replay")
    parser.add_argument(
        "file", help="WORKDIR/replay/step_N.npz of a run that told of it"
    )
    print(run(parser.parse_args(argv).file))
    return 0


def run(path: str) -> str:
    """What can be said about the step in `path`, in a few lines."""
    replay = nonfinite.read(path)
    config = recipe(replay.config)
    told = ", ".join(f"{name} {value:.4g}" for name, value in replay.told.items())
    lines = [f"step {replay.step} of {config.stage}, as it was: {told}"]
    state = before(path, replay, config)
    for dtype in dict.fromkeys(("float32", config.compute_dtype)):
        found = examine(replay, state, recipe(replay.config, compute_dtype=dtype))
        lines.append(f"in {dtype}: {found}")
        if not found.startswith(FINE):
            break
    return "\n".join(lines)


def recipe(plain: Mapping, **changes) -> ConfigDict:
    """The config of a replay file, for one device and with every value in sight."""

    def tuples(value):
        if isinstance(value, Mapping):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ConfigDict(tuples(plain))
    config.update(dict(remat="none", **changes))
    return config.lock()


def before(path: str, replay: nonfinite.Replay, config) -> core.TrainState:
    """The state the step began with: kept beside its file, or made once more."""
    beside = nonfinite.state_of(path)
    mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=1)), jax.devices()[:1])
    stage = stages.build(config)
    program = step.build(config, stage, mesh, replay.batch)
    saved = checkpoint.Manager(beside or replay.workdir)
    try:
        steps = [at for at in saved.steps() if at < replay.step]
        if steps:
            state = saved.restore(program.state, steps)
        else:
            state = program.start(
                stage.warm_start(program.init(program.keys()["init"]))
            )
    finally:
        saved.close()
    first = int(state.step)
    if first == replay.step - 1:
        return state
    print(f"the state is made again from step {first}", flush=True)
    frozen, _ = train.frozen_variables(stage, config, replay.batch, mesh)
    dataset = source.load(config, config.data.train_split)
    batches = batches_from(dataset, config, first, replay.processes)
    key = program.keys()["step"]
    for _, batch in zip(range(first, replay.step - 1), batches, strict=False):
        state, _ = program.step(state, frozen, parallel.to_global(batch, mesh), key)
    return state


def batches_from(dataset, config, first: int, processes: int) -> Iterator[dict]:
    """The global batches from step `first` on, as so many processes read them."""
    if dataset.stream is None:  # The order is the same for any number of them.
        processes = 1
    each = [
        order.train_batches(dataset, config.batch, config.seed, first, i, processes)
        for i in range(processes)
    ]
    for rows in zip(*each, strict=True):
        yield {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}


FINE = "everything is finite"


def examine(replay: nonfinite.Replay, state: core.TrainState, config) -> str:
    """Names what is not finite first: parameters, a module, a term, or a gradient."""
    spoilt = unsound(torch_names.to_torch(jax.device_get(state.params), None))
    if spoilt:
        return f"the parameters themselves are not finite, {spoilt[0]} among them"
    stage = stages.build(config)
    mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=1)), jax.devices()[:1])
    frozen, _ = train.frozen_variables(stage, config, replay.batch, mesh)
    batch = jax.tree.map(jnp.asarray, replay.batch)
    draws = stage.draw(jax.random.fold_in(replay.key, replay.step - 1), batch)
    given = state.model_state, frozen, batch, draws, state.step
    seen = Modules(frozen)
    # Eager, so that every module shows its numbers, each block of a loop on its own.
    with jax.disable_jit(), nn.intercept_methods(seen):
        _, (_, told) = stage.loss(state.params, *given)
    if seen.bad:
        return f"the first module that is not finite is {seen.bad[0]}"
    terms = unsound(jax.device_get(told))
    if terms:
        return f"every module is finite, but {', '.join(terms)} is not"

    def part(batch, draws):
        given = state.model_state, frozen, batch, draws, state.step
        loss = lambda params: stage.loss(params, *given)[0]
        return jax.grad(loss)(state.params)

    mean = jax.jit(lambda b, d: step.mean_over(part, b, d, config.accumulate))
    spoilt = unsound(torch_names.to_torch(jax.device_get(mean(batch, draws)), None))
    if spoilt:
        # The backward pass meets the last module first.
        place = {name: position for position, name in enumerate(seen.names)}
        late = max(spoilt, key=lambda name: place.get(name.rpartition(".")[0], -1))
        return (
            f"the loss is finite ({float(told['loss']):.4g}), its gradient is not; the "
            f"backward pass meets {late} first ({len(spoilt)} parameters in all)"
        )
    return f"{FINE}, the loss is {float(told['loss']):.4g}"


def unsound(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The names of those with a value that is not finite."""
    return [name for name, x in arrays.items() if not np.isfinite(x).all()]


class Modules:
    """A Flax interceptor: every module's name in order, and those not finite."""

    def __init__(self, frozen):
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

    def _name(self, path, module):
        """As in PyTorch, `blocks.3.attn.qkv`; a loop calls its one block again."""
        count = self._calls[path] = self._calls.get(path, -1) + 1
        parts = list(path)
        for at, part in enumerate(path):
            if part in torch_names.STACKED:
                parts.insert(at + 1, str(count))
                break
        name = ".".join(parts) or type(module).__name__
        return f"{name} of what is frozen" if self._frozen else name
