# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recipe needs of devices that are not here: `g2sd plan --config=RECIPE`.

The real training step and the real evaluation are compiled ahead of time, for a named
TPU topology on a CPU (libtpu is in the extra `tpu`) or for what is here; no data, no
weights and no TPU are needed. Every figure says where it comes from.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax import cli, evaluation, parallel, recipes, stages, step, workdir
from g2sd_jax.tools import (
    bench,
    budget,
    collectives,
    hlo,
    shapes,
    topology,
    wording,
    work,
)


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("plan")
    parser.add_argument("--topology", default="", help="v5e:8x8, v4:2x2x4; '': here")
    parser.add_argument("--out", default="", help="file for the figures, as JSON")
    parser.add_argument("--no-eval", action="store_true", help="only the training step")
    parser.add_argument(
        "--sweep",
        default="",
        metavar="BATCHES:WIDTHS",
        help="images per device and fsdp widths to compare, such as 32,64,128:1,4",
    )
    parser.add_argument(
        "--efficiency",
        type=float,
        default=0.5,
        help="share of the roofline that hours are reckoned with (default 0.5)",
    )
    parser.add_argument("--price", type=float, help="of one chip for one hour")
    parser.add_argument("--hours", type=float, help="how far the recipe gets in these")
    args = recipes.parse(parser, argv)
    budget.check(args)
    config = shapes.without_weights(args.config)
    where = topology.named(args.topology) if args.topology else topology.here(config)
    figures = plan(config, where, evaluate=not args.no_eval)
    figures["spec"] = args.spec
    figures["recipe"] = budget.recipe(config, figures, args)
    print(wording.describe(figures), flush=True)
    if args.sweep:
        figures["sweep"] = budget.sweep(args.sweep, config, where, plan)
        print(wording.table(figures["sweep"]), flush=True)
    print(wording.verdict(figures), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")
    return 0


class Compiled(NamedTuple):
    """A program, or what the compiler said instead."""

    executable: object | None
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


def plan(config, where: topology.Slice, evaluate: bool = True) -> dict:
    """Compiles training and evaluation for every device; all figures but the recipe's.

    Args:
        config: of `shapes.without_weights`.
        where: the devices.
        evaluate: compile the stage's evaluators too.
    """
    mesh = parallel.make_mesh(config.mesh, where.devices)
    parallel.check_batch(config, mesh)
    stage = stages.build(config)
    example = shapes.of_batch(
        bench.invented_batch(shapes.few(config)), config.batch, mesh
    )
    program = step.build(config, stage, mesh, example)
    frozen = shapes.of_frozen(stage, config, mesh)
    given = (program.state, frozen, example, shapes.key_of(mesh))
    given += (shapes.of_going(config, mesh),)
    compiled = compile_or_refusal(program.step, given, where)
    # The feed's, and the one that the last step was made from (`nonfinite.Keeper`).
    waiting = (config.data.prefetch + 1) * bytes_per_device(example)
    held = dict(
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
        jax=jax.__version__,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        source=config.data.source,
        batch_shapes={key: list(leaf.shape) for key, leaf in example.items()},
        memory=memory(held, compiled, where.chip.memory, waiting),
        flops_per_image=dict(asked=asked(config, stage, program.state, frozen)),
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


def compile_or_refusal(function, given, where: topology.Slice) -> Compiled:
    """A program that does not fit may be refused by the compiler itself."""
    lowered = function.lower(*given)
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
    """What a TPU's compiler says that the temporary values would need, if it does."""
    said = re.search(r"temporaries \(([\d.]+)([KMG])\)", refusal)
    return int(float(said[1]) * 2 ** dict(K=10, M=20, G=30)[said[2]]) if said else 0


def memory(held, compiled: Compiled, limit: float, waiting: int) -> dict:
    """Bytes per device: what is kept between steps by name, and what a step adds.

    Args:
        held: name -> what the program is given.
        compiled: the program.
        limit: bytes of one device.
        waiting: bytes of batches that lie on the device besides the program's own.
    """
    found = {name: bytes_per_device(tree) for name, tree in held.items()}
    sizes = compiled.sizes()
    if sizes:
        found |= dict(
            # The compiler pads arrays to whole tiles.
            padding=sizes["arguments"] - sum(found.values()),
            activations=sizes["temporary"],
            program=sizes["program"],
            new=sizes["new"],
        )
    else:
        found["activations"] = refused_bytes(compiled.refusal)
    found["waiting"] = waiting
    total = sum(found.values())
    fits = bool(sizes) and total <= limit
    found = dict(bytes_per_device=found, total=total, limit=limit, fits=fits)
    return found | dict(spare=limit - total, refusal=compiled.refusal)


def bytes_per_device(tree) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
        else 0
        for leaf in jax.tree.leaves(tree)
    )


def asked(config, stage, state, frozen) -> float:
    """FLOPs per image of the matrix products that the method asks for."""
    bare = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    state, frozen = jax.tree.map(bare, (state, frozen))
    batch = bench.invented_batch(shapes.few(config))
    return bench.model_flops(stage, state, frozen, bench.prepared(config, batch))


def step_figures(compiled: Compiled, figures: dict, where: topology.Slice) -> dict:
    """Work, collectives and the roofline, read from the compiled program."""
    if compiled.executable is None:
        return {}
    devices, batch = figures["devices"], figures["batch"]
    program = hlo.read(compiled.executable.as_text())
    done = work.measure(program)
    sent = collectives.summary(collectives.find(program, devices))
    per_image = lambda count: None if count is None else count * devices / batch
    figures["flops_per_image"]["compiled"] = per_image(done.flops)
    # A library's own products are not seen in the text: then what was asked counts.
    products = done.flops or figures["flops_per_image"]["asked"] * batch / devices
    return dict(
        bytes_per_image=dict(memory=per_image(done.memory), all=per_image(done.all)),
        collectives=sent,
        loops_counted_once=program.unknown,
        roofline=budget.roofline(products, done.memory, sent, batch, where),
    )


def evaluations(stage, config, mesh, program, frozen, where, waiting) -> dict:
    """Memory per device of every evaluator's prediction.

    Args:
        stage, config, mesh, program, frozen, where: of the training step.
        waiting: bytes of training batches that stay on a device meanwhile.
    """
    small = shapes.few(shapes.on_fakes(config))
    variables = program.state.variables
    found = {}
    for name, evaluator in stages.build(small).evaluators.items():
        batch, _ = next(iter(evaluator.batches()))
        batch = shapes.of_batch(batch, config.batch, mesh)
        predict = evaluation.compiled(stage.evaluators[name], mesh)
        compiled = compile_or_refusal(predict, (variables, frozen, batch), where)
        held = dict(parameters=variables, teacher=frozen, batch=batch)
        row = memory(held, compiled, where.chip.memory, waiting)
        # The optimiser stays on the device meanwhile.
        row["total"] += bytes_per_device(program.state.opt_state)
        row["fits"] &= row["total"] <= row["limit"]
        found[name] = dict(row, spare=row["limit"] - row["total"])
    return found
