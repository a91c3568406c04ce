# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: as a pure function, and compiled onto a mesh."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from g2sd_jax import core, optim, parallel
from g2sd_jax.weights import torch_names


class Program(NamedTuple):
    """A recipe on a mesh: what training, measuring and planning have in common."""

    state: core.TrainState  # of `ShapeDtypeStruct`s that say where each leaf lives
    keys: Callable  # () -> {"init": key, "step": key}, placed
    init: Callable  # key -> variables, each born where it lives
    start: Callable  # variables from anywhere -> the state of step 0
    step: Callable  # (state, frozen, batch, key[, going]) -> (state, metrics), jitted


def build(config, stage: core.Stage, mesh, example) -> Program:
    """Lays the stage's state out over the mesh; compiles nothing yet.

    Args:
        config: the recipe.
        stage: of `stages.build(config)`.
        mesh: of `parallel.make_mesh`.
        example: a batch, or the shapes of one.
    """
    shapes = jax.eval_shape(stage.init, jax.random.key(0), example)
    refuse_accumulation(config, shapes)
    rate = optim.learning_rate(config.optim, *count(config))
    tx = optim.build(config.optim, torch_names.names(shapes["params"]), rate)
    create = lambda variables: new_state(variables, tx)
    state = jax.eval_shape(create, shapes)
    where, homes = parallel.shardings(state, mesh), parallel.shardings(shapes, mesh)
    init = jax.jit(stage.init, out_shardings=homes)
    born = jax.jit(create, out_shardings=where)

    def keys():
        make = lambda: core.stream_keys(jax.random.key(config.seed), "init", "step")
        return jax.jit(make, out_shardings=parallel.replicated(mesh))()

    return Program(
        state=jax.tree.map(parallel.placed_shape, state, where),
        keys=keys,
        init=lambda key: init(key, example),
        start=lambda variables: born(parallel.place(variables, homes)),
        step=jax.jit(
            train_step(stage, tx, rate, config.accumulate, mesh),
            donate_argnums=0,
            # What is told goes into the next step as well, so it has its place.
            out_shardings=(where, parallel.replicated(mesh)),
        ),
    )


def count(config) -> tuple[int, int]:
    """Steps per epoch and in all; refuses an epoch shorter than one batch."""
    for key in (
        "log_every",
        "eval_epochs",
        "checkpoint.every",
        "checkpoint.keep",
        "data.prefetch",
        "data.timeout",
    ):
        value = core.flatten(config.to_dict())[key]
        if value <= 0:
            raise ValueError(f"config.{key}={value} must be positive.")
    if config.seed < 0:
        raise ValueError(f"config.seed={config.seed} must not be negative.")
    per_epoch = config.data.train_examples // config.batch
    if not per_epoch:
        raise ValueError(
            f"config.data.train_examples={config.data.train_examples} is less than one "
            f"config.batch={config.batch}, so no step would ever be made; use a batch "
            f"of at most {config.data.train_examples}."
        )
    total = config.total_steps
    if total is None:
        total = round(config.total_epochs * per_epoch)
    if total < 1:
        raise ValueError(
            f"config.total_epochs={config.total_epochs} (config.total_steps="
            f"{config.total_steps}) makes {total} steps; ask for at least one."
        )
    return per_epoch, total


def refuse_accumulation(config, shapes) -> None:
    """Batch statistics of a micro-batch are not those of the batch."""
    kept = sorted(key for key in shapes if key != "params")
    if config.accumulate > 1 and kept:
        raise ValueError(
            f"config.accumulate={config.accumulate}: stage {config.stage} keeps "
            f"{', '.join(kept)} of the whole batch, which micro-batches would change; "
            "use config.accumulate=1 on more devices, or config.remat=full."
        )


def new_state(variables: dict, tx) -> core.TrainState:
    """Step 0 of `variables`."""
    model_state = {key: value for key, value in variables.items() if key != "params"}
    return core.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        model_state=model_state,
        opt_state=tx.init(variables["params"]),
    )


def train_step(
    stage: core.Stage, tx, rate: Callable, parts: int, mesh=None
) -> Callable:
    """(state, frozen, batch, root, going) -> (state, metrics), to be jitted.

    The order is part of the contract: draws for the whole batch, then micro-batches,
    their mean gradient, clipping, the update; a step that is not finite changes nothing
    but `step`. `going` is the `finite` of the step before, where a run is to stop at
    the first that is not: the one already under way then changes nothing at all.
    """

    gradient = jax.value_and_grad(stage.loss, has_aux=True)

    def step(state, frozen, batch, root, going=None):
        draws = stage.draw(jax.random.fold_in(root, state.step), batch)
        # Once a step, not once a micro-batch; the gradient goes back the same way.
        whole, frozen = parallel.gathered((state.params, frozen), mesh)

        def part(batch, draws):
            given = state.model_state, frozen, batch, draws, state.step
            (_, aux), grads = gradient(whole, *given)
            return aux, grads

        (model_state, told), grads = mean_over(part, batch, draws, parts)
        grads = parallel.scattered(grads, mesh)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(told["loss"]) & jnp.isfinite(norm)
        finite = finite if going is None else finite & going
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, step=state.step
        )
        params = optax.apply_updates(state.params, updates)
        kept = lambda new, old: jnp.where(finite, new, old)
        new = (params, model_state, opt_state)
        old = (state.params, state.model_state, state.opt_state)
        count = state.step + (1 if going is None else going.astype(jnp.int32))
        state = core.TrainState(count, *jax.tree.map(kept, new, old))
        told |= {"grad_norm": norm, "lr": rate(state.step - 1), "finite": finite}
        return state, told

    return step


def mean_over(part: Callable, batch, draws, parts: int):
    """The mean of `part(batch, draws)` over micro-batches, one after the other."""
    if parts == 1:
        return part(batch, draws)
    shared = {key: value for key, value in draws.items() if not value.ndim}
    each = {key: value for key, value in draws.items() if value.ndim}
    split = jax.tree.map(lambda array: split_batch(array, parts), (batch, each))

    def one(micro):
        return part(micro[0], {**micro[1], **shared})

    def add(total, micro):
        return jax.tree.map(jnp.add, total, one(micro)), None

    shapes = jax.eval_shape(
        lambda micros: one(jax.tree.map(lambda x: x[0], micros)), split
    )
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, split)
    return jax.tree.map(lambda x: x / parts, total)


def split_batch(array, parts: int):
    """[B, ...] -> [parts, B / parts, ...], without moving rows between devices.

    Mixing pairs row r with row B - 1 - r. Each micro-batch is closed under that, in an
    order in which the reversed micro-batch holds the same partners; so mixing after the
    split equals mixing before it.
    """
    count = len(array)
    if count % (2 * parts):  # Nothing can be mixed in an odd micro-batch anyway.
        return array.reshape(count // parts, parts, *array.shape[1:]).swapaxes(0, 1)
    columns = [[part, 2 * parts - 1 - part] for part in range(parts)]
    rows = array.reshape(count // (2 * parts), 2 * parts, *array.shape[1:])
    rows = rows[:, np.array(columns)].swapaxes(0, 1)  # [parts, B / 2 parts, 2, ...]
    return rows.reshape(parts, count // parts, *array.shape[1:])
