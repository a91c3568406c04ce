# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A recipe's step and evaluation, compiled for devices that may not be here."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import core, parallel, stages, step, workdir
from g2sd_jax.evaluators import fold
from g2sd_jax.measure import (
    budget,
    collectives,
    hlo,
    hlo_groups,
    hlo_work,
    shapes,
    step_speed,
    topology,
)
from g2sd_jax.models import layers


class Compiled(NamedTuple):
    """A program, or the compiler's refusal."""

    executable: jax.stages.Compiled | None
    refusal: str

    def sizes(self) -> dict:
        """Bytes per device, as the compiler laid the program out."""
        if self.executable is None:
            return {}
        memory = self.executable.memory_analysis()
        return dict(
            arguments=memory.argument_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            program=memory.generated_code_size_in_bytes,
            new=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        )


def plan(
    config: ConfigDict, where: topology.Slice, evaluate: bool = True
) -> dict[str, Any]:
    """Compiles training and evaluation, and returns all figures but the recipe's.

    Args:
        config: of `shapes.without_weights`.
        where: the devices.
        evaluate: compile the stage's evaluators too.
    """
    config = layers.on_platform(config, where.devices[0].platform)
    mesh = parallel.make_mesh(config.mesh, where.devices)
    parallel.check_batch(config, mesh)
    stage = stages.build(config)
    example = shapes.of_batch(
        step_speed.invented_batch(shapes.small_batch(config), stage.reads),
        config.batch,
        mesh,
    )
    program = step.build(config, stage, mesh)
    frozen = shapes.of_frozen(stage, config, mesh)
    arguments = (program.state, frozen, example, shapes.key_of(mesh))
    arguments += (shapes.of_going(config, mesh),)
    # Before the step, which may take half an hour to compile.
    work = asked(config, program.state, frozen)
    compiled = compile_or_refusal(program.step, arguments, where)
    # The feed's, and the one that the last step was made from (`nonfinite.Keeper`).
    waiting = (config.data.prefetch + 1) * bytes_per_device(example)
    arrays = dict(
        parameters=program.state.params,
        optimiser=program.state.opt_state,
        teacher=frozen,
        batch=example,
    )
    figures = dict(
        stage=config.stage,
        topology=where.name,
        devices=len(where.devices),
        hosts=where.hosts,
        device=where.devices[0].device_kind,
        mesh=dict(mesh.shape),
        dtype=config.compute_dtype,
        batch=config.batch,
        batch_per_device=config.batch // len(where.devices) // config.accumulate,
        accumulate=config.accumulate,
        scan=config.scan,
        remat=config.remat,
        attention=config.attention,
        jax=jax.__version__,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        source=config.data.source,
        batch_shapes={key: list(leaf.shape) for key, leaf in example.items()},
        memory=memory(arrays, compiled, where.chip.memory, waiting),
        flops_per_image=dict(asked=work),
    )
    figures |= step_figures(compiled, figures, where)
    if evaluate:
        # The feed has gone on meanwhile.
        waiting += bytes_per_device(example)
        figures["evaluation"] = evaluations(
            stage, config, mesh, program, frozen, where, waiting
        )
    figures["sources"] = budget.sources(where)
    return figures


def compile_or_refusal(
    function: Callable, arguments: Sequence[Any], where: topology.Slice
) -> Compiled:
    """Compiles a jitted function, whose program may be too large for the compiler."""
    lowered = function.lower(*arguments)
    cache = jax.config.jax_compilation_cache_dir
    if where.devices[0].client is not jax.devices()[0].client:
        # What was compiled for absent devices is written, but can not be read again.
        workdir.use_cache(None)
    try:
        return Compiled(lowered.compile(), "")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(None, str(error).splitlines()[0])
    finally:
        workdir.use_cache(cache)


def refused_bytes(refusal: str) -> int:
    """Reads the bytes of temporary values out of a TPU compiler's refusal, else 0."""
    match = re.search(r"temporaries \(([\d.]+)([KMG])\)", refusal)
    if not match:
        return 0
    return int(float(match[1]) * 2 ** dict(K=10, M=20, G=30)[match[2]])


def memory(
    arrays: Mapping[str, Any], compiled: Compiled, limit: float, waiting: int
) -> dict[str, Any]:
    """Adds up bytes per device: arguments by name, and what a step adds to them.

    Args:
        arrays: name -> tree of the program's arguments.
        compiled: the program.
        limit: bytes of one device.
        waiting: bytes of batches that lie on the device besides the program's own.
    """
    parts = {name: bytes_per_device(tree) for name, tree in arrays.items()}
    sizes = compiled.sizes()
    if sizes:
        parts |= dict(
            # The compiler pads arrays to whole tiles.
            padding=sizes["arguments"] - sum(parts.values()),
            activations=sizes["temporary"],
            program=sizes["program"],
            new=sizes["new"],
        )
    else:
        parts["activations"] = refused_bytes(compiled.refusal)
    parts["waiting"] = waiting
    total = sum(parts.values())
    fits = bool(sizes) and total <= limit
    return dict(
        bytes_per_device=parts,
        total=total,
        limit=limit,
        fits=fits,
        spare=limit - total,
        refusal=compiled.refusal,
    )


def bytes_per_device(tree: Any) -> int:
    """Adds up one device's shards of a tree of arrays or shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
        else 0
        for leaf in jax.tree.leaves(tree)
    )


def asked(config: ConfigDict, state: core.TrainState, frozen: Any) -> float:
    """Counts FLOPs per image of the matrix products that the method asks for.

    What is rematerialised counts once.
    """
    bare = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    state, frozen = jax.tree.map(bare, (state, frozen))
    config = step_speed.as_asked(config)
    stage = stages.build(config)
    with config.unlocked():
        config.batch = max(shapes.FEW, stage.group)  # Which a loss is made of.
    batch = step_speed.invented_batch(config, stage.reads)
    return step_speed.model_flops(
        stage, state, frozen, step_speed.prepared(config, batch)
    )


def step_figures(
    compiled: Compiled, figures: dict[str, Any], where: topology.Slice
) -> dict[str, Any]:
    """Reads work, collectives and the roofline from the compiled program."""
    if compiled.executable is None:
        return {}
    devices, batch = figures["devices"], figures["batch"]
    program = hlo.read(compiled.executable.as_text())
    work = hlo_work.measure(program)
    sent = collectives.summary(collectives.find(program, devices))
    per_image = lambda count: None if count is None else count * devices / batch
    figures["flops_per_image"]["compiled"] = per_image(work.flops)
    groups = hlo_groups.bytes_by_group(program).items()
    per_group = {name: per_image(moved) for name, moved in groups}
    # A library's own products are not seen in the text: then what was asked counts.
    products = work.flops or figures["flops_per_image"]["asked"] * batch / devices
    return dict(
        bytes_per_image=dict(memory=per_image(work.memory), all=per_image(work.all)),
        collectives=sent,
        bytes_by_group=per_group,
        transfers=hlo_work.transfers(program),
        loops_counted_once=program.unknown,
        roofline=budget.roofline(products, work.memory, sent, batch, where),
    )


def evaluations(
    stage: core.Stage,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    program: step.Program,
    frozen: Any,
    where: topology.Slice,
    waiting: int,
) -> dict[str, dict[str, Any]]:
    """Adds up the memory per device of every evaluator's prediction.

    Args:
        stage: of training.
        config: the recipe.
        mesh: of the devices.
        program: the training step's.
        frozen: shapes of the frozen variables.
        where: the devices.
        waiting: bytes of training batches that stay on a device meanwhile.
    """
    small = shapes.small_batch(shapes.on_fakes(config))
    variables = program.state.variables
    rows = {}
    for name, evaluator in stages.build(small).evaluators.items():
        batch, _ = next(iter(evaluator.batches()))
        batch = shapes.of_batch(batch, config.batch, mesh)
        predict = fold.compile_predict(stage.evaluators[name], mesh)
        compiled = compile_or_refusal(predict, (variables, frozen, batch), where)
        arrays = dict(parameters=variables, teacher=frozen, batch=batch)
        row = memory(arrays, compiled, where.chip.memory, waiting)
        # The optimiser stays on the device meanwhile.
        row["total"] += bytes_per_device(program.state.opt_state)
        row["fits"] &= row["total"] <= row["limit"]
        rows[name] = dict(row, spare=row["limit"] - row["total"])
    return rows
