# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Our training steps beside PyTorch's: python launch/compare_torch.py --out=TABLE.md

For every recipe the authors' structure in PyTorch, a tuned one, and ours take turns in
one process, on the same invented pictures, weights and masks. Before the clock starts
all make the same two steps, and their losses have to agree. One command for a CPU and
for a GPU, where the recipes are measured at their first batch and then at the others,
until the budget is spent; what does not fit is skipped and says so. Beside TABLE.md
lies TABLE.json with every figure. On a CPU, source launch/env.sh first.
"""

import argparse
import functools
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_baseline
import torch_networks
from ml_collections import ConfigDict

from g2sd_jax import errors, optim, parallel, recipes, stages, step
from g2sd_jax.measure import step_speed
from g2sd_jax.models import layers, vit
from g2sd_jax.weights import torch_names

BEGAN = time.monotonic() - time.process_time()  # Importing is a part of the budget.
RECIPES = (
    "generic_distill:student=s16",
    "specific_cls:student=s16",
    "pretrain:model=b16",
    "generic_distill:student=ti16",
    "dmae_distill",
)
# By platform: batches, seconds of a turn and of the first cell (a guess), dtype.
DEFAULTS = {
    "cpu": dict(batches="16", seconds=2.0, cell=150.0, dtype="float32"),
    "cuda": dict(batches="256,512", seconds=0.3, cell=60.0, dtype="bfloat16"),
}
TURNS, CHECKED = 7, 2
# Of either library, memory above all; of a change that can not be made here.
FAILURES = (RuntimeError, FloatingPointError, ValueError)
# Differences of the first loss, and of the one after a step, relative to the loss.
AGREE = {"float32": (2e-5, 2e-3), "bfloat16": (2e-2, 5e-2)}
COLUMNS = {  # of the table: (key, format)
    "recipe": ("recipe", "{}"),
    "batch": ("batch", "{}"),
    "program": ("program", "{}"),
    "ms an image": ("ms_per_image", "{:.3f}"),
    "images/s": ("images_per_s", "{:.1f}"),
    "TFLOP/s": ("tflops", "{:.2f}"),
    "share of its library's product": ("share_of_product", "{:.1%}"),
    "GB": ("gb", "{:.1f}"),
    "times authors": ("times_authors", "{:.2f}"),
    "times tuned": ("times_tuned", "{:.2f}"),
}


def main(argv: Sequence[str]) -> int:
    """Measures the cells that fit the budget, and writes them as they come."""
    # The two libraries share a GPU's memory: neither may take most of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    defaults = DEFAULTS[device]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--out", required=True, help="the table, such as table.md; .json lies beside")
    add("--recipes", nargs="+", default=RECIPES, help="such as pretrain:model=b16")
    add("--batches", default=defaults["batches"], help="images a step, such as 256,512")
    add("--dtype", default=defaults["dtype"], choices=sorted(AGREE))
    add(
        "--torch",
        default="authors,tuned",
        help="forms, of " + ", ".join(torch_networks.FORMS),
    )
    add(
        "--ours",
        nargs="+",
        default=[""],
        metavar="CHANGES",
        help="changes of a recipe, one text for each program, such as 'attention=xla "
        "xla_gpu_enable_triton_gemm=false'",
    )
    add("--budget", type=float, default=3600.0, help="seconds in all, start included")
    add("--seconds", type=float, default=defaults["seconds"], help="of one turn")
    args = parser.parse_args(argv)
    forms = [
        errors.one_of("--torch", name, torch_networks.FORMS)
        for name in args.torch.split(",")
    ]
    table = Table(pathlib.Path(args.out), describe_machine(device, args))
    expected = defaults["cell"]
    batches = [int(batch) for batch in args.batches.split(",")]
    for batch, recipe in ((b, r) for b in batches for r in args.recipes):
        name = f"{recipe} at batch {batch}"
        left = args.budget - (time.monotonic() - BEGAN)
        if left < expected:
            table.skip(f"{name}: {left:.0f} s are left, it takes about {expected:.0f}")
            continue
        at = time.monotonic()
        config = settings(recipe, batch, args.dtype)
        try:
            table.add(compare(table, config, name, forms, device, args))
        except FAILURES as error:
            table.skip(f"{name}: {shorten(error)}")
        release()
        expected = max(1.15 * (time.monotonic() - at), 0.5 * expected)
    print(f"done after {time.monotonic() - BEGAN:.0f} s", flush=True)
    return int(table.differs)


class Table:
    """The rows measured so far, printed and written as they come."""

    def __init__(self, path: pathlib.Path, machine: Mapping[str, Any]) -> None:
        self.path, self.machine = path, machine
        self.rows: list[dict] = []
        self.skipped: list[str] = []
        self.differs = False  # Whether the losses of two programs ever did.
        print(self.heading(), flush=True)
        print("\n".join(self.lines([])), flush=True)

    def add(self, rows: Sequence[dict]) -> None:
        """Adds the rows of a cell, one of which is named authors and one tuned."""
        rates = {row["program"]: row["images_per_s"] for row in rows}
        for row in rows:
            for form in ("authors", "tuned"):
                if form in rates and row["program"] not in torch_networks.FORMS:
                    row[f"times_{form}"] = row["images_per_s"] / rates[form]
            print(self.line(row), flush=True)
        self.rows += rows
        self.write()

    def skip(self, reason: str) -> None:
        """Notes a cell or a program that is not measured."""
        print(f"skipped {reason}", flush=True)
        self.skipped.append(reason)
        self.write()

    def write(self) -> None:
        """Writes both files."""
        lines = [self.heading(), "", *self.lines(self.rows), ""]
        lines += [f"- skipped {reason}" for reason in self.skipped]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        figures = dict(self.machine, rows=self.rows, skipped=self.skipped)
        text = json.dumps(figures, indent=2) + "\n"
        self.path.with_suffix(".json").write_text(text, encoding="utf-8")

    def heading(self) -> str:
        """Says where and with what the rows were measured."""
        return "; ".join(f"{key} {value}" for key, value in self.machine.items())

    @staticmethod
    def line(row: Mapping[str, Any]) -> str:
        """Writes a row in Markdown; what was not measured stays empty."""
        cells = (
            form.format(row[key]) if row.get(key) is not None else ""
            for key, form in COLUMNS.values()
        )
        return "| " + " | ".join(cells) + " |"

    @classmethod
    def lines(cls, rows: Sequence[Mapping]) -> list[str]:
        """Writes the Markdown table of rows."""
        names = "| " + " | ".join(COLUMNS) + " |"
        return [names, "|---" * len(COLUMNS) + "|", *map(cls.line, rows)]


def describe_machine(device: str, args: argparse.Namespace) -> dict[str, Any]:
    """Names the hardware, versions and settings, and measures both matrix products."""
    name = platform.processor() or platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        models = [x.partition(":")[2].strip() for x in lines if "model name" in x]
        name = f"{len(models)} cores of {models[0]}" if models else name
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    dtype = layers.DTYPES[args.dtype]
    return dict(
        device=name,
        date=time.strftime("%Y-%m-%d"),
        commit=commit.stdout.strip() or "unknown",
        python=platform.python_version(),
        jax=jax.__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        dtype=args.dtype,
        tunables=os.environ.get("GLIBC_TUNABLES", "none"),
        xla_flags=os.environ.get("XLA_FLAGS", "none"),
        jax_product_tflops=round(step_speed.matmul_peak(dtype), 4),
        torch_product_tflops=round(torch_product(device, args.dtype), 4),
    )


def torch_product(device: str, dtype: str) -> float:
    """Measures TFLOP/s of PyTorch's product as `step_speed.matmul_peak` does ours."""
    side = step_speed.SIDE["gpu" if device == "cuda" else "cpu"]
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(11):
        synchronise(device)
        at = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        seconds.append(time.perf_counter() - at)
    return 2 * side**3 / min(seconds[1:]) / 1e12


def settings(recipe: str, batch: int, dtype: str) -> ConfigDict:
    """Reads a recipe for a measurement: untrained networks, a constant small rate."""
    overrides = {"batch": batch, "compute_dtype": dtype, "optim.lr": 1e-4}
    return step_speed.untrained(recipes.load(recipe, overrides), "scan")


def compare(
    table: Table,
    config: ConfigDict,
    name: str,
    forms: Sequence[str],
    device: str,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Measures one recipe at one batch: a row for every program.

    Args:
        table: of the products' speeds; it notes the programs that are skipped.
        config: of `settings`.
        name: of the cell, for what is skipped.
        forms: of PyTorch.
        device: cpu or cuda.
        args: of the command line.
    """
    example, programs = invented(config), {}
    wanted = {f"ours {changes}".strip(): changes for changes in args.ours}
    reference = None
    for program in (*wanted, *forms):
        try:
            if program in wanted:
                made = Ours(config, wanted[program], example)
            else:
                made = Torch(config, program, device, reference, example)
        except FAILURES as error:
            table.skip(f"{program}, {name}: {shorten(error)}")
            if reference is None:
                return []
            continue
        reference = reference or made
        losses = reference.losses, made.losses
        if not agree(*losses, AGREE[args.dtype]):
            table.skip(f"{program}, {name}: losses differ, {losses[0]}, {losses[1]}")
            table.differs = True
            continue
        programs[program] = made
    work = matrix_work(config, example, reference.frozen)
    rows = []
    for program, seconds in in_turns(programs, args.seconds).items():
        rate = work * config.batch / seconds / 1e12
        product = table.machine[f"{programs[program].library}_product_tflops"]
        row = dict(recipe=name.split(" at ")[0], batch=config.batch, program=program)
        row |= dict(
            ms_per_image=1000 * seconds / config.batch,
            images_per_s=config.batch / seconds,
            gflop_per_image=work / 1e9,
            tflops=rate,
            share_of_product=rate / product,
            gb=programs[program].bytes and programs[program].bytes / 1e9,
            losses=programs[program].losses,
            compile_s=programs[program].compile_seconds,
        )
        rows.append(row)
    return rows


def changed(
    config: ConfigDict, changes: str
) -> tuple[ConfigDict, dict[str, bool | str]]:
    """Copies a recipe with `key=value key=value` of it changed.

    Returns:
        The copy, and the changes whose keys are options of the compiler (`xla_…`).
    """
    pairs = dict(change.split("=", 1) for change in changes.split())
    words = {"true": True, "false": False}
    options = {key: pairs.pop(key) for key in [*pairs] if key.startswith("xla_")}
    options = {key: words.get(value, value) for key, value in options.items()}
    config = config.copy_and_resolve_references()
    return recipes.with_overrides(config, pairs), options


def invented(config: ConfigDict) -> dict[str, np.ndarray]:
    """Makes a host batch of noise: pictures that count as augmented, soft labels."""
    rng = np.random.default_rng(0)
    size = (*config.model.image_size, config.model.channels)
    classes = config.data.classes
    target = rng.random((config.batch, classes), np.float32) ** 8
    return dict(
        image=rng.standard_normal((config.batch, *size), np.float32),
        target=target / target.sum(axis=-1, keepdims=True),
        valid=np.ones(config.batch, bool),
        index=np.arange(config.batch, dtype=np.int32),
    )


class Ours:
    """Our jitted step of a recipe, on one device, and the losses of its first steps."""

    library = "jax"

    def __init__(
        self, config: ConfigDict, changes: str, example: Mapping[str, np.ndarray]
    ) -> None:
        began = time.perf_counter()
        config, options = changed(config, changes)
        mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
        self.stage = stages.build(config)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            variables = jax.jit(self.stage.init)(jax.random.key(config.seed))
            teacher = self.stage.frozen()
        self.student = torch_names.to_torch(variables["params"], grid(config))
        self.teacher = {}
        if teacher:
            self.teacher = torch_names.to_torch(teacher["params"], grid(config))
            dtype = layers.compute_options(config)["dtype"]
            teacher = parallel.cast(self.stage.trim(teacher), dtype)
            teacher = parallel.place(teacher, parallel.shardings(teacher, mesh))
        program = step.build(config, self.stage, mesh)
        self.frozen, self.batch = teacher, parallel.to_global(example, mesh)
        self.key = program.keys()["step"]
        self.state = program.start(jax.device_get(variables))
        arguments = (self.state, self.frozen, self.batch, self.key)
        self.step = program.step.lower(*arguments).compile(options or None)
        sizes = self.step.memory_analysis()
        self.bytes = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
        rate = optim.learning_rate(config.optim, *step.count_steps(config))
        self.rates = [float(rate(number)) for number in range(CHECKED)]
        self.losses = []
        for _ in range(CHECKED):
            self.run()
            self.losses.append(float(self.metrics["loss"]))
        self.compile_seconds = time.perf_counter() - began

    @functools.cached_property
    def noise(self) -> list[np.ndarray]:
        """What chooses the masks of the first steps, [B, N], drawn as they draw it."""

        @jax.jit
        def draw(number):
            key = jax.random.fold_in(self.key, number)
            return self.stage.draw(key, self.batch).get("noise", jnp.zeros(()))

        return [np.asarray(draw(number)) for number in range(CHECKED)]

    def run(self) -> None:
        """Starts a step."""
        arguments = (self.state, self.frozen, self.batch, self.key)
        self.state, self.metrics = self.step(*arguments)

    def wait(self) -> None:
        """Waits for the last step."""
        jax.block_until_ready(self.metrics)


def grid(config: ConfigDict) -> tuple[int, int]:
    """Rows and columns of patches."""
    return vit.grid(config.model)


class Torch:
    """PyTorch's step, started from the weights of ours and on the same masks."""

    library = "torch"

    def __init__(
        self,
        config: ConfigDict,
        form: str,
        device: str,
        ours: Ours,
        example: Mapping[str, np.ndarray],
    ) -> None:
        began = time.perf_counter()
        self.device, self.rate = device, ours.rates[-1]
        before = 0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        settings = torch_networks.FORMS[form]
        weights = ours.student, ours.teacher
        self.trainer = torch_baseline.Trainer(config, settings, device, *weights)
        move = lambda array: torch.tensor(array, device=device)
        self.image = move(example["image"].transpose(0, 3, 1, 2))
        self.target = move(example["target"])
        self.losses = []
        for drawn, rate in zip(ours.noise, ours.rates, strict=True):
            noise = move(drawn)
            loss = self.trainer.step(self.image, noise, self.target, rate)
            self.losses.append(float(loss))
        self.noise_shape = noise.shape
        self.bytes = None
        if device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - before
        self.compile_seconds = time.perf_counter() - began

    def run(self) -> None:
        """Starts a step on a new mask."""
        noise = torch.rand(self.noise_shape, device=self.device)
        self.trainer.step(self.image, noise, self.target, self.rate)

    def wait(self) -> None:
        """Waits for the last step."""
        synchronise(self.device)


def shorten(error: Exception) -> str:
    """Writes the beginning of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def synchronise(device: str) -> None:
    """Waits for all that PyTorch started."""
    if device == "cuda":
        torch.cuda.synchronize()


def agree(one: Sequence[float], two: Sequence[float], bounds: Sequence[float]) -> bool:
    """Whether the losses of the first steps differ by no more than the bounds."""
    pairs = zip(one, two, bounds, strict=True)
    return all(abs(a - b) <= bound * abs(a) for a, b, bound in pairs)


def matrix_work(
    config: ConfigDict, example: Mapping[str, np.ndarray], frozen: Any
) -> float:
    """Counts the FLOPs of the method's matrix products, per image."""
    config, _ = changed(config, "attention=xla remat=none batch=2")
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    stage = stages.build(config)
    state = step.build(config, stage, mesh).state
    batch = {key: value[:2] for key, value in example.items()}
    return step_speed.model_flops(stage, state, frozen, batch)


def in_turns(programs: Mapping[str, Ours | Torch], seconds: float) -> dict[str, float]:
    """Times programs one after the other, again and again.

    Args:
        programs: by name, all of them compiled.
        seconds: that a turn of one program lasts, at least one step.
    Returns:
        The median seconds of a step of each.
    """
    calls, turns = {}, {name: [] for name in programs}
    for name, program in programs.items():
        calls[name] = max(1, round(seconds / _timed(program, 1)))
    for _ in range(TURNS):
        for name, program in programs.items():
            turns[name].append(_timed(program, calls[name]) / calls[name])
    return {name: statistics.median(each) for name, each in turns.items()}


def _timed(program, calls):
    at = time.perf_counter()
    for _ in range(calls):
        program.run()
    program.wait()
    return time.perf_counter() - at


def release() -> None:
    """Gives back what a cell has taken: memory and compiled programs."""
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    jax.clear_caches()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
