# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a recipe's real step runs here, on invented batches."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from ml_collections import ConfigDict

from g2sd_jax import core, parallel, stages, step, workdir
from g2sd_jax.data import source
from g2sd_jax.measure import flops
from g2sd_jax.models import vit
from g2sd_jax.ops import attention

SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # Of the square matrices of the peak.
LEAST_SECONDS, LEAST_STEPS = 5.0, 5
FORMS = {"scan": True, "unroll": False}


def measure(
    config: ConfigDict, form: str, peak: float, trace: str = ""
) -> dict[str, Any]:
    """Compiles the step twice (cold, then from the cache) and times it.

    Args:
        config: the recipe.
        form: scan or unroll.
        peak: TFLOP/s of a plain matrix product here, of `matmul_peak`.
        trace: folder for a profiler trace of three steps; "" = none.
    """
    config = untrained(config, form)
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_batch(config, mesh)
    stage = stages.build(config)
    example = invented_batch(config, stage.reads)
    frozen, _ = stages.frozen_variables(stage, config, example, mesh)
    program = step.build(config, stage, mesh)
    keys = program.keys()
    batch = parallel.to_global(example, mesh)
    arguments = (program.state, frozen, batch, keys["step"])
    cold, cached, compiled = compile_times(program.step, arguments)
    state = program.start(program.init(keys["init"]))
    seconds, state = time_steps(compiled, state, frozen, batch, keys["step"])
    if trace:
        with jax.profiler.trace(trace):
            for _ in range(3):
                state, metrics = compiled(state, frozen, batch, keys["step"])
            jax.block_until_ready(metrics)
    counted = stages.build(as_asked(config))
    work = model_flops(counted, program.state, frozen, prepared(config, example))
    rate = work * config.batch / seconds / 1e12
    return dict(
        stage=config.stage,
        device=jax.devices()[0].device_kind,
        devices=mesh.size,
        dtype=config.compute_dtype,
        batch=config.batch,
        form=form,
        attention=attention_of(config, compiled),
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


def untrained(config: ConfigDict, form: str) -> ConfigDict:
    """Copies the recipe for a measurement: an untrained teacher unless it names one."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.scan = FORMS[form]
        config.total_steps = 1000
        config.optim.warmup_epochs = 0.0
        for group in ("teacher", "encoder"):
            if group in config and not config[group].checkpoint:
                config[group].checkpoint = "random:0"
    return config


def as_asked(config: ConfigDict) -> ConfigDict:
    """Copies the recipe as the method has it, to count its products: none is made
    twice, and none is hidden in a library's kernel."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.attention, config.remat = "xla", "none"
    return config


def attention_of(config: ConfigDict, compiled: jax.stages.Compiled) -> str:
    """Names the form of attention that a compiled step runs, of `ops.attention`."""
    if "__cudnn$fmha" in compiled.as_text():
        return "cudnn"
    if config.attention != "auto":
        return config.attention
    rows, columns = vit.grid(config.model)
    return attention.choose(jax.devices()[0].platform, 1 + rows * columns)


def invented_batch(
    config: ConfigDict, reads: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Makes one host batch: a few invented examples, repeated.

    Args:
        config: the recipe.
        reads: batch keys beside `image`, as in `core.Stage.reads`.
    """
    count = min(config.batch, 8)
    rows = np.resize(np.arange(count), config.batch // jax.process_count())
    examples = source.invented(config, count, reads)
    batch = {key: value[rows] for key, value in examples.items()}
    batch["valid"] = np.ones(len(rows), bool)
    batch["index"] = rows.astype(np.int32)
    return batch


def prepared(
    config: ConfigDict, batch: Mapping[str, ArrayLike]
) -> dict[str, ArrayLike]:
    """Replaces the pictures by floating point ones, which count as augmented."""
    shape = len(batch["image"]), *config.model.image_size, config.model.channels
    return {**batch, "image": np.zeros(shape, np.float32)}


def compile_times(
    function: Callable, arguments: Sequence[Any]
) -> tuple[float, float, jax.stages.Compiled]:
    """Times compilation without and with the persistent cache.

    Returns:
        Both in seconds, and the program.
    """
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as folder:  # Empty: the first one misses.
        workdir.use_cache(folder)
        build = lambda: function.lower(*arguments).compile()  # Tracing counts as well.
        cold, compiled = _timed(build)
        jax.clear_caches()
        cached, _ = _timed(build)
        workdir.use_cache(before)
    return cold, cached, compiled


def _timed(function):
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def time_steps(
    function: Callable,
    state: core.TrainState,
    frozen: Any,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[float, core.TrainState]:
    """Times steps, at least five of them and five seconds.

    Returns:
        The median in seconds, and the last state.
    """
    state, metrics = function(state, frozen, batch, key)
    jax.block_until_ready(metrics)
    seconds, began = [], time.perf_counter()
    while len(seconds) < LEAST_STEPS or time.perf_counter() - began < LEAST_SECONDS:
        at = time.perf_counter()
        state, metrics = function(state, frozen, batch, key)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - at)
    return statistics.median(seconds), state


def model_flops(
    stage: core.Stage,
    state: core.TrainState,
    frozen: Any,
    batch: Mapping[str, ArrayLike],
) -> float:
    """Counts FLOPs of the matrix products of loss and gradient, per image.

    Args:
        stage: the stage of training, of a recipe of `as_asked`.
        state: the training state, or its shapes.
        frozen: the frozen variables, or their shapes.
        batch: of `prepared`, so that cropping is not counted.
    """
    count = len(batch["valid"])
    draws = jax.eval_shape(stage.draw, jax.random.key(0), batch)
    gradient = jax.value_and_grad(stage.loss, has_aux=True)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    total = flops.matmul(
        gradient, state.params, state.model_state, frozen, batch, draws, number
    )
    return total / count


def matmul_peak(dtype: DTypeLike) -> float:
    """Measures TFLOP/s of a large square matrix product on one device, best of ten."""
    device = jax.devices()[0]
    side = SIDE.get(device.platform, 4096)
    # Of random numbers: products of equal ones take less power, and run faster.
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    matrix = jax.device_put(matrix, device)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(matrix))
    best = min(
        _timed(lambda: jax.block_until_ready(product(matrix)))[0] for _ in range(10)
    )
    return 2 * side**3 / best / 1e12


def peak_memory(compiled: jax.stages.Compiled) -> float:
    """Returns the bytes one device needed: measured if possible, else as compiled."""
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


def describe(figures: Mapping[str, Any]) -> str:
    """Writes the figures as a few lines for a reader."""
    return (
        "{stage} on {devices} x {device}, {dtype}, batch {batch}, {form}, attention "
        "{attention}: "
        "{step_ms:.1f} ms a step, {images_per_s:.1f} images/s "
        "({ms_per_image:.2f} ms each)\n"
        "  {gflop_per_image:.2f} GFLOP per image = {tflops:.3f} TFLOP/s, "
        "{share_of_peak:.1%} of a matrix product's {matmul_peak_tflops:.3f}\n"
        "  peak memory {peak_memory_gb:.2f} GB; compiled in {compile_cold_s:.1f} s, "
        "from the cache in {compile_cached_s:.1f} s"
    ).format(**figures)
