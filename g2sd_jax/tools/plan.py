# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recipe's step needs on a TPU that is not here: `g2sd plan --config=RECIPE`.

The real step is compiled ahead of time for a named topology, on a CPU, with libtpu from
the extra `tpu`; neither data nor weights nor a TPU are needed.
"""

import json
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from g2sd_jax import cli, core, parallel, recipes, stages
from g2sd_jax import step as stepping
from g2sd_jax.models import layers
from g2sd_jax.tools import bench

# Generation: bytes of memory per device, options of its topology. A v4 chip counts as
# one device only in its megacore form.
GENERATIONS = {
    "v4": (32 * 2**30, dict(chip_config_name="megacore")),
    "v5e": (16 * 2**30, {}),
    "v5p": (95 * 2**30, {}),
    "v6e": (32 * 2**30, {}),
}


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("plan")
    parser.add_argument("--topology", required=True, help="such as v5e:8x8, v4:2x2x4")
    parser.add_argument("--out", default="", help="file for the figures, as JSON")
    args = recipes.parse(parser, argv)
    figures = plan(args.config, args.topology)
    print(describe(figures), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)
    return 0


def devices_of(topology: str) -> list:
    """The devices of a topology, as the compiler sees them."""
    generation = topology.partition(":")[0]
    _, options = core.lookup("--topology", generation, GENERATIONS)
    # Nobody is to be asked for a TPU's metadata, nor does one hold a lock here.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        found = topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **options
        )
    except (ImportError, RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(
            f"--topology={topology!r}: {error}. Compiling for a TPU takes libtpu (pip "
            "install 'g2sd_jax[tpu]') and a topology such as v5e:8x8."
        ) from error
    return list(found.devices)


def plan(config, topology: str) -> dict:
    """Compiles the training step for every device of the topology.

    FLOPs are the compiler's and count the body of a loop once, so with
    `config.scan=True` they are left out.
    """
    devices = devices_of(topology)
    mesh = parallel.make_mesh(config.mesh, devices)
    parallel.check_batch(config, mesh)
    config = bench.untrained(config, "scan" if config.scan else "unroll")
    stage = stages.build(config)
    example = batch_shapes(config, mesh)
    program = stepping.build(config, stage, mesh, example)
    given = (program.state, frozen_shapes(stage, config, mesh), example, key_of(mesh))
    compiled = program.step.lower(*given).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    limit, _ = GENERATIONS[topology.partition(":")[0]]
    sizes = dict(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        new=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )
    flops = None if config.scan else cost["flops"] * len(devices) / config.batch
    return dict(
        stage=config.stage,
        topology=topology,
        devices=len(devices),
        device=devices[0].device_kind,
        dtype=config.compute_dtype,
        batch=config.batch,
        scan=config.scan,
        remat=config.remat,
        bytes_per_device=sizes,
        total_bytes=sum(sizes.values()),
        limit_bytes=limit,
        fits=sum(sizes.values()) <= limit,
        flops_per_image=flops,
        jax=jax.__version__,
    )


def batch_shapes(config, mesh) -> dict:
    few = config.copy_and_resolve_references()
    with few.unlocked():
        few.batch = 1
    where = parallel.batch_sharding(mesh)
    return {
        key: jax.ShapeDtypeStruct(
            (config.batch, *value.shape[1:]), value.dtype, sharding=where
        )
        for key, value in bench.invented_batch(few).items()
    }


def frozen_shapes(stage, config, mesh):
    """What is frozen, trimmed and cast as the run would have it."""
    dtype = layers.machine(config)["dtype"]
    trim = lambda frozen: parallel.cast(stage.trim(frozen), dtype)
    frozen = stage.frozen()
    shapes = jax.eval_shape(trim, frozen) if frozen else {}
    return jax.tree.map(parallel.placed_shape, shapes, parallel.shardings(shapes, mesh))


def key_of(mesh):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return parallel.placed_shape(key, parallel.replicated(mesh))


def describe(figures: dict) -> str:
    """The figures as a few lines for a reader; the last says whether it fits."""
    sizes = ", ".join(
        f"{name} {size / 1e9:.2f}" for name, size in figures["bytes_per_device"].items()
    )
    flops = figures["flops_per_image"]
    counted = "not counted in a loop" if flops is None else f"{flops / 1e9:.2f} GFLOP"
    total, limit = figures["total_bytes"] / 1e9, figures["limit_bytes"] / 1e9
    verdict = "yes" if figures["fits"] else "no"
    return (
        "{stage} on {devices} x {device} ({topology}), {dtype}, batch {batch}, "
        "scan={scan}, remat={remat}\n"
        f"  compiled: {counted} per image; GB per device: {sizes}\n"
        f"fits: {verdict}, {total:.2f} of {limit:.2f} GB per device"
    ).format(**figures)
