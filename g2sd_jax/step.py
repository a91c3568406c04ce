# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: as a pure function, and compiled onto a mesh."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from g2sd_jax import core, optim, parallel
from g2sd_jax.weights import torch_names

T = TypeVar("T")


class Program(NamedTuple):
    """A recipe on a mesh, as training, measuring and planning run it."""

    state: core.TrainState  # of `ShapeDtypeStruct`s that say where each leaf lives
    keys: Callable  # () -> {"init": key, "step": key}, placed
    init: Callable  # key -> variables, each born where it lives
    start: Callable  # variables from anywhere -> the state of step 0
    step: Callable  # (state, frozen, batch, key[, going]) -> (state, metrics), jitted


def build(config: ConfigDict, stage: core.Stage, mesh: jax.sharding.Mesh) -> Program:
    """Lays the stage's state out over the mesh; compiles nothing yet.

    Args:
        config: the recipe.
        stage: of `stages.build(config)`.
        mesh: of `parallel.make_mesh`.
    """
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    check_accumulation(config, stage, shapes)
    rate = optim.learning_rate(config.optim, *count_steps(config))
    tx = optim.build(config.optim, torch_names.names(shapes["params"]), rate)
    create = lambda variables: new_state(variables, tx)
    state = jax.eval_shape(create, shapes)
    where, homes = parallel.shardings(state, mesh), parallel.shardings(shapes, mesh)
    born = jax.jit(create, out_shardings=where)

    def keys():
        make = lambda: core.stream_keys(jax.random.key(config.seed), "init", "step")
        return jax.jit(make, out_shardings=parallel.replicated(mesh))()

    return Program(
        state=jax.tree.map(parallel.with_sharding, state, where),
        keys=keys,
        init=jax.jit(stage.init, out_shardings=homes),
        start=lambda variables: born(parallel.place(variables, homes)),
        step=jax.jit(
            train_step(stage, tx, rate, config.accumulate, mesh),
            donate_argnums=0,
            # The metrics go into the next step as well, so they have their place.
            out_shardings=(where, parallel.replicated(mesh)),
        ),
    )


def count_steps(config: ConfigDict) -> tuple[int, int]:
    """Steps per epoch and in all; refuses an epoch shorter than one batch."""
    if config.data.train_examples is None:
        raise ValueError(
            "config.data.train_examples=None: how many examples an epoch has is not "
            "known without the data; set it."
        )
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


def check_accumulation(config: ConfigDict, stage: core.Stage, shapes: Mapping) -> None:
    """Refuses micro-batches whose mean gradient is not that of the batch.

    Args:
        config: the recipe.
        stage: whose loss is divided; `stage.indivisible` may say that it can not be.
        shapes: of `stage.init`. Batch statistics of a part are not those of the batch.
    """
    part = config.batch // config.accumulate
    if part % stage.group:
        raise ValueError(
            f"config.batch={config.batch} in config.accumulate={config.accumulate} "
            f"parts of {part}: the loss is normalised in groups of {stage.group} "
            "neighbouring pictures (config.loss.group), which must divide each part."
        )
    if config.accumulate <= 1:
        return
    statistics = sorted(key for key in shapes if key != "params")
    because = stage.indivisible
    if because is None and statistics:
        because = (
            f"stage {config.stage} keeps {', '.join(statistics)} of the whole batch, "
            "which micro-batches would change"
        )
    if because is not None:
        raise ValueError(
            f"config.accumulate={config.accumulate}: {because}; use "
            "config.accumulate=1 on more devices, or config.remat=full."
        )


def new_state(
    variables: Mapping, tx: optax.GradientTransformationExtraArgs
) -> core.TrainState:
    """The training state before the first step."""
    model_state = {key: value for key, value in variables.items() if key != "params"}
    return core.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        model_state=model_state,
        opt_state=tx.init(variables["params"]),
    )


def train_step(
    stage: core.Stage,
    tx: optax.GradientTransformationExtraArgs,
    rate: Callable[[jax.Array], jax.Array],
    parts: int,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable:
    """Makes `(state, frozen, batch, root, going) -> (state, metrics)`, to be jitted.

    The order is part of the contract: draws for the whole batch, then micro-batches,
    their mean gradient, clipping, the update; a step that is not finite changes nothing
    but `step`. `going` is the `finite` of the step before, where a run is to stop at
    the first that is not: the one already under way then changes nothing at all.

    Args:
        stage: whose loss is minimised.
        tx: the optimiser; its `update` takes `step`.
        rate: step -> learning rate, to log it.
        parts: number of micro-batches.
        mesh: over whose fsdp axis parameters are gathered once a step; None: no axis.
    """

    gradient = jax.value_and_grad(stage.loss, has_aux=True)

    def step(state, frozen, batch, root, going=None):
        draws = stage.draw(jax.random.fold_in(root, state.step), batch)
        # Once a step, not once a micro-batch; the gradient goes back the same way.
        gathered, frozen = parallel.gather_over_fsdp((state.params, frozen), mesh)

        def part(batch, draws):
            (_, aux), grads = gradient(
                gathered, state.model_state, frozen, batch, draws, state.step
            )
            return aux, grads

        (model_state, metrics), grads = mean_over(
            part, batch, draws, parts, stage.group
        )
        grads = parallel.scatter_over_fsdp(grads, mesh)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        finite = finite if going is None else finite & going
        with jax.named_scope("optimiser"):
            updates, opt_state = tx.update(
                grads, state.opt_state, state.params, step=state.step
            )
            params = optax.apply_updates(state.params, updates)
            new = params, model_state, opt_state
            old = state.params, state.model_state, state.opt_state
            params, model_state, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), new, old
            )
        state = core.TrainState(
            step=state.step + (1 if going is None else going.astype(jnp.int32)),
            params=params,
            model_state=model_state,
            opt_state=opt_state,
        )
        metrics |= {"grad_norm": norm, "lr": rate(state.step - 1), "finite": finite}
        return state, metrics

    return step


def mean_over(
    part: Callable[[Mapping, Mapping], T],
    batch: Mapping,
    draws: Mapping,
    parts: int,
    group: int = 1,
) -> T:
    """The mean of `part(batch, draws)` over micro-batches, one after the other.

    Args:
        part: batch, draws -> a tree of arrays.
        batch: arrays [B, ...] by name.
        draws: arrays [B, ...], which are divided with the batch, or scalars, which
            every micro-batch gets.
        parts: number of micro-batches; divides B.
        group: neighbouring rows that stay together; divides B / parts.
    """
    if parts == 1:
        return part(batch, draws)
    shared = {key: value for key, value in draws.items() if not value.ndim}
    by_row = {key: value for key, value in draws.items() if value.ndim}
    split = jax.tree.map(
        lambda array: split_batch(array, parts, group), (batch, by_row)
    )

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


def split_batch(array: jax.Array, parts: int, group: int = 1) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], without moving rows between devices.

    Groups of more than one row go to the parts by turns, each undivided; where a device
    has fewer groups than there are parts, rows do move. Other rows may be mixed.

    Mixing pairs row r with row B - 1 - r. Each micro-batch is closed under that, in an
    order in which the reversed micro-batch holds the same partners; so mixing after the
    split equals mixing before it.
    """
    count, *shape = array.shape
    if group > 1:
        rows = array.reshape(count // (parts * group), parts, group, *shape)
        return rows.swapaxes(0, 1).reshape(parts, count // parts, *shape)
    if count % (2 * parts):  # Nothing can be mixed in an odd micro-batch anyway.
        return array.reshape(count // parts, parts, *shape).swapaxes(0, 1)
    columns = [[part, 2 * parts - 1 - part] for part in range(parts)]
    rows = array.reshape(count // (2 * parts), 2 * parts, *shape)
    rows = rows[:, np.array(columns)].swapaxes(0, 1)  # [parts, B / 2 parts, 2, ...]
    return rows.reshape(parts, count // parts, *shape)
