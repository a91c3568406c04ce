# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a recipe's own step runs: `g2sd bench --config=RECIPE`.

The real jitted step, on invented batches that already lie on the device and, where the
recipe names no teacher, an untrained one: no data and no weights are needed. With
`--input` its data alone, without the step.
"""

import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax import cli, core, parallel, recipes, stages, step, train, workdir
from g2sd_jax.data import source
from g2sd_jax.models import layers
from g2sd_jax.tools import bench_input, flops

SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # Of the square matrices of the peak.
LEAST_SECONDS, LEAST_STEPS = 5.0, 5


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("bench")
    parser.add_argument("--trace", default="", help="folder for a profiler trace")
    parser.add_argument("--out", default="", help="file for the figures, as JSON")
    parser.add_argument(
        "--loops",
        default="scan,unroll",
        help="which forms of the blocks to measure: scan, unroll, or both",
    )
    parser.add_argument(
        "--augment",
        action="store_true",
        help="measure what the device does to the pictures, beside the step",
    )
    parser.add_argument(
        "--canvas",
        default="",
        help="HEIGHTxWIDTH that --augment starts from; the source's own without it",
    )
    parser.add_argument(
        "--input", action="store_true", help="measure how fast its pictures arrive"
    )
    parser.add_argument(
        "--original", default="", help="with --input: the folder or tar Pillow reads"
    )
    parser.add_argument(
        "--step", type=float, default=0.0, help="with --input: images/s of the step"
    )
    args = recipes.parse(parser, argv)
    check(args)
    if args.augment:
        # Only now: it is built of this module's parts.
        part = importlib.import_module("g2sd_jax.tools.bench_augment")
        told = part.describe
        canvas = part.canvas_of(args.canvas) if args.canvas else None
        figures = [part.measure(args.config, canvas)]
    elif args.input:
        told = bench_input.describe
        figures = [bench_input.measure(args.config, args.original, args.step)]
    else:
        told = describe
        loops = [core.one_of("--loops", each, FORMS) for each in args.loops.split(",")]
        peak = matmul_peak(layers.machine(args.config)["dtype"])
        figures = [measure(args.config, form, peak, args.trace) for form in loops]
    for each in figures:
        print(told(each), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)
    return 0


def check(args) -> None:
    """Refuses two things to measure, and options of one that is not asked for."""
    if args.augment and args.input:
        raise ValueError("--augment and --input measure two things; ask for one.")
    for option, mode in (
        ("canvas", "augment"),
        ("original", "input"),
        ("step", "input"),
    ):
        value = getattr(args, option)
        if value and not getattr(args, mode):
            raise ValueError(f"--{option}={value} is for --{mode}; add it.")


FORMS = {"scan": True, "unroll": False}


def measure(config, form: str, peak: float, trace: str = "") -> dict:
    """Compiles the step twice (cold, then from the cache) and times it.

    Args:
        config: the recipe; `batch`, mesh and dtype are its own.
        form: scan or unroll.
        peak: TFLOP/s of a plain matrix product here, of `matmul_peak`.
        trace: folder for a profiler trace of three steps; "" = none.
    """
    config = untrained(config, form)
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_batch(config, mesh)
    stage = stages.build(config)
    example = invented_batch(config)
    frozen, _ = train.frozen_variables(stage, config, example, mesh)
    program = step.build(config, stage, mesh, example)
    keys = program.keys()
    batch = parallel.to_global(example, mesh)
    given = (program.state, frozen, batch, keys["step"])
    cold, cached, compiled = compile_times(program.step, given)
    state = program.start(program.init(keys["init"]))
    seconds, state = time_steps(compiled, state, frozen, batch, keys["step"])
    if trace:
        with jax.profiler.trace(trace):
            for _ in range(3):
                state, told = compiled(state, frozen, batch, keys["step"])
            jax.block_until_ready(told)
    work = model_flops(stage, program.state, frozen, prepared(config, example))
    rate = work * config.batch / seconds / 1e12
    return dict(
        stage=config.stage,
        device=jax.devices()[0].device_kind,
        devices=mesh.size,
        dtype=config.compute_dtype,
        batch=config.batch,
        form=form,
        compile_cold_s=cold,
        compile_cached_s=cached,
        step_ms=1000 * seconds,
        images_per_s=config.batch / seconds,
        ms_per_image=1000 * seconds / config.batch,
        gflop_per_image=work / 1e9,
        tflops=rate,
        matmul_peak_tflops=peak * mesh.size,
        share_of_peak=rate / (peak * mesh.size),
        peak_memory_gb=peak_memory(compiled) / 1e9,
        jax=jax.__version__,
    )


def untrained(config, form: str):
    """The recipe as it is measured: an untrained teacher unless it names one."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.scan = FORMS[form]
        config.total_steps = 1000
        config.optim.warmup_epochs = 0.0
        for group in ("teacher", "encoder"):
            if group in config and not config[group].checkpoint:
                config[group].checkpoint = "random:0"
    return config


def invented_batch(config) -> dict:
    """One host batch: a few invented examples, repeated."""
    few = min(config.batch, 8)
    rows = np.resize(np.arange(few), config.batch // jax.process_count())
    examples = source.invented(config, few)
    batch = {key: value[rows] for key, value in examples.items()}
    batch["valid"] = np.ones(len(rows), bool)
    batch["index"] = rows.astype(np.int32)
    return batch


def prepared(config, batch) -> dict:
    """The batch as the loss takes it for augmented: pictures in floating point."""
    shape = len(batch["image"]), *config.model.image_size, config.model.channels
    return {**batch, "image": np.zeros(shape, np.float32)}


def compile_times(function, given) -> tuple[float, float, object]:
    """Seconds to compile without and with the persistent cache, and the program."""
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as folder:  # Empty: the first one misses.
        workdir.use_cache(folder)
        build = lambda: function.lower(*given).compile()  # Tracing counts as well.
        cold, compiled = _timed(build)
        jax.clear_caches()
        cached, _ = _timed(build)
        workdir.use_cache(before)
    return cold, cached, compiled


def _timed(function):
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def time_steps(function, state, frozen, batch, key) -> tuple[float, core.TrainState]:
    """Median seconds of a step, over at least five steps and five seconds."""
    state, told = function(state, frozen, batch, key)
    jax.block_until_ready(told)
    seconds, began = [], time.perf_counter()
    while len(seconds) < LEAST_STEPS or time.perf_counter() - began < LEAST_SECONDS:
        at = time.perf_counter()
        state, told = function(state, frozen, batch, key)
        jax.block_until_ready(told)
        seconds.append(time.perf_counter() - at)
    return statistics.median(seconds), state


def model_flops(stage, state, frozen, batch) -> float:
    """FLOPs of the matrix products of loss and gradient, per image.

    Args:
        stage: what is counted.
        state: the training state, or its shapes.
        frozen: what the loss needs besides, or its shapes.
        batch: of `prepared`, so that cropping is not counted.
    """
    count = len(batch["valid"])
    draws = jax.eval_shape(stage.draw, jax.random.key(0), batch)
    gradient = jax.value_and_grad(stage.loss, has_aux=True)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    given = state.params, state.model_state, frozen, batch, draws, number
    return flops.matmul(gradient, *given) / count


def matmul_peak(dtype) -> float:
    """TFLOP/s of one large square matrix product on one device, best of ten."""
    device = jax.devices()[0]
    side = SIDE.get(device.platform, 4096)
    matrix = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(matrix))
    best = min(
        _timed(lambda: jax.block_until_ready(product(matrix)))[0] for _ in range(10)
    )
    return 2 * side**3 / best / 1e12


def peak_memory(compiled) -> float:
    """Bytes one device needed: measured where it says, else as compiled."""
    measured = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in measured:
        return measured["peak_bytes_in_use"]
    planned = compiled.memory_analysis()
    return (
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        + planned.temp_size_in_bytes
        - planned.alias_size_in_bytes
    )


def describe(figures: dict) -> str:
    """The figures as a few lines for a reader."""
    return (
        "{stage} on {devices} x {device}, {dtype}, batch {batch}, {form}: "
        "{step_ms:.1f} ms a step, {images_per_s:.1f} images/s "
        "({ms_per_image:.2f} ms each)\n"
        "  {gflop_per_image:.2f} GFLOP per image = {tflops:.3f} TFLOP/s, "
        "{share_of_peak:.1%} of a matrix product's {matmul_peak_tflops:.3f}\n"
        "  peak memory {peak_memory_gb:.2f} GB; compiled in {compile_cold_s:.1f} s, "
        "from the cache in {compile_cached_s:.1f} s"
    ).format(**figures)
