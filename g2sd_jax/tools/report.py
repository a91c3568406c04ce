# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a chain: what each stage bought, in a table and two pictures.

Every number comes from the runs' own files (`DONE`, `config.json`, `metrics.jsonl`,
checkpoints) or is measured here; every sentence on the outcome is chosen by numbers.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jinja2
import numpy as np
from matplotlib import figure
from ml_collections import ConfigDict

from g2sd_jax import checkpoint, core, metrics, stages, train
from g2sd_jax.data import source
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import augment, patches

SECONDS = "seconds.json"  # {step: seconds of training}, kept by `tools.chain`.
TURNS, CALLS = 15, 10  # Every model predicts CALLS batches a turn; the median counts.
EXAMPLES = 8  # Images whose reconstruction is drawn.
HIDDEN = (0.55, 0.65, 0.85)  # Colour of a patch that is not seen.

TEMPLATE = """\
# {{ title }}

{{ table }}

Top-1 in % of {{ examples }} held-out examples: mean ± standard deviation over seeds
{{ seeds }}, then each seed. They were fixed beforehand; none was chosen by its result.
Share: of the teacher's mean. Throughput: images/s of the jitted prediction, {{ batch }}
at a time, relative to the teacher's {{ speed }}; the models took turns in one process,
and the median of {{ turns }} turns counts.

## What each stage did

{% for line in effects -%}
- {{ line }}
{% endfor %}
A difference counts as told apart if every seed agrees on its sign and its mean exceeds
its standard deviation over the seeds.

{{ note }}

## Losses

![loss of every step](losses.png)

## What the teacher makes of what it does not see

![original, visible patches, reconstruction](reconstructions.png)

Held-out images, seed {{ first }}, {{ hidden }} of the patches hidden (blue). Visible
patches are pasted back.{% if normalised %} The teacher predicts each patch normalised
by its own mean and variance; to draw it, those of the true patch are put back, so a
patch's brightness is given and its strokes are guessed.{% endif %}


## How it was made

{{ steps }}

Together {{ minutes }} minutes of training and evaluation, compiling included; attempts
that were interrupted are not counted. {{ environment }}.
"""


class Row(NamedTuple):
    """One method of the central table."""

    method: str
    params: int
    throughput: float  # images/s relative to the teacher's
    generic: str  # yes, no; – for the teacher
    specific: str
    top1: tuple[float, ...]  # one per seed

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)


class Model(NamedTuple):
    """A finished classifier, ready to be timed."""

    params: int
    predict: Callable  # () -> logits of one batch, jitted
    batch: int


def write(config: ConfigDict, workdir: str) -> str:
    """Writes `report.md` and its pictures into a chain's workdir; returns the table."""
    first = os.path.join(workdir, f"seed{config.seeds[0]}")
    folders = [os.path.join(first, step) for _, step in config.rows]
    models = [load(folder) for folder in folders]
    speeds = throughput([model.predict for model in models])
    relative = np.median(speeds / speeds[:1], axis=1)
    rows = [
        Row(
            method,
            models[i].params,
            float(relative[i]),
            *(stages_behind(folders[i]) if i else ("–", "–")),
            top1_of(workdir, config.seeds, step),
        )
        for i, (method, step) in enumerate(config.rows)
    ]
    drawn = os.path.join(first, config.reconstructions)
    losses = {name: loss_curves(workdir, config, name) for name, *_ in config.steps}
    draw_losses(losses).savefig(os.path.join(workdir, "losses.png"))
    draw_images(reconstruct(drawn)).savefig(
        os.path.join(workdir, "reconstructions.png")
    )
    drawn = read_config(drawn)
    seconds = read_json(os.path.join(workdir, SECONDS))
    table = central_table(rows)
    text = jinja2.Template(TEMPLATE, undefined=jinja2.StrictUndefined).render(
        title=config.title,
        note=config.note,
        table=table,
        seeds=", ".join(map(str, config.seeds)),
        first=config.seeds[0],
        examples=read_json(os.path.join(folders[0], train.DONE))["eval/count"],
        batch=models[0].batch,
        speed=f"{np.median(speeds[0]) * models[0].batch:,.0f}",
        turns=TURNS,
        effects=effects(rows),
        hidden=f"{100 * drawn.mask_ratio:.0f} %",
        normalised=drawn.target == "normalised",
        steps=step_table(config, workdir, seconds),
        minutes=f"{sum(seconds.values()) / 60:.1f}",
        environment=environment(workdir),
    )
    with open(os.path.join(workdir, "report.md"), "w", encoding="utf-8") as file:
        file.write(text + "\n")
    return table


def check_rows(config: ConfigDict) -> None:
    """Refuses a report on steps the chain does not have, before anything is trained."""
    known = {name: spec for name, spec, _ in config.steps}
    for method, step in config.rows:
        core.lookup(f"config.rows: the step of {method!r}", step, known)
    core.lookup("config.reconstructions", config.reconstructions, known)


def read_json(path: str):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_config(workdir: str) -> ConfigDict:
    """The config of a run, from its workdir."""
    return ConfigDict(read_json(os.path.join(workdir, "config.json")))


def load(workdir: str) -> Model:
    """The classifier that a run left behind."""
    config = read_config(workdir)
    evaluator = stages.build(config).evaluators["eval"]
    model = vit.classifier(config.model, config.data.classes, **layers.machine(config))
    variables = checkpoint.load_variables(
        workdir,
        lambda weights: lambda key: vit.init(model, key),
        grid=vit.grid(config.model),
        key="workdir",
    )
    batch, _ = next(iter(evaluator.batches()))
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    given = jax.device_put((variables, {}, batch))
    predict = jax.jit(evaluator.predict)
    return Model(params, lambda: predict(*given), config.batch)


def throughput(predicts: Sequence[Callable], turns=TURNS, calls=CALLS) -> np.ndarray:
    """[models, turns] calls per second; in turns, so that all share the noise."""
    for predict in predicts:
        jax.block_until_ready(predict())  # Compiled before the clock starts.
    speeds = np.zeros((len(predicts), turns))
    for turn in range(turns):
        for i, predict in enumerate(predicts):
            began = time.perf_counter()
            for _ in range(calls):
                outputs = predict()
            jax.block_until_ready(outputs)
            speeds[i, turn] = calls / (time.perf_counter() - began)
    return speeds


def stages_behind(workdir: str) -> tuple[str, str]:
    """Whether generic and whether specific distillation made the run's weights."""
    config = read_config(workdir)
    start = read_config(config.init_from) if config.init_from else {"stage": "none"}
    said = {True: "yes", False: "no"}
    specific = config.stage.startswith("specific_")
    return said[start["stage"] == "generic_distill"], said[specific]


def top1_of(workdir: str, seeds: Sequence[int], step: str) -> tuple[float, ...]:
    done = [os.path.join(workdir, f"seed{seed}", step, train.DONE) for seed in seeds]
    return tuple(read_json(path)["eval/top1"] for path in done)


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def effects(rows: Sequence[Row]) -> list[str]:
    """A sentence on each comparison the table allows."""
    by = {(row.generic, row.specific): row for row in rows[1:]}
    compared = (
        ("Generic distillation", ("yes", "no"), ("no", "no")),
        ("Specific distillation after it", ("yes", "yes"), ("yes", "no")),
        ("Specific distillation alone", ("no", "yes"), ("no", "no")),
        ("Both", ("yes", "yes"), ("no", "no")),
    )
    return [
        effect(what, by[one], by[other])
        for what, one, other in compared
        if one in by and other in by
    ]


def effect(what: str, row: Row, other: Row) -> str:
    """What `row` has over `other`, seed by seed, and whether that says anything."""
    gains = [a - b for a, b in zip(row.top1, other.top1, strict=True)]
    mean, deviation = statistics.fmean(gains), spread(gains)
    if deviation is None:
        verdict = "one seed cannot tell whether that is chance"
    elif abs(mean) > deviation and (min(gains) > 0 or max(gains) < 0):
        verdict = "it helped" if mean > 0 else "it hurt"
    else:
        verdict = "it made no difference that these seeds can tell"
    around = "" if deviation is None else f" ± {deviation:.2f}"
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    return (
        f"**{what}** ({row.method} over {other.method}): {mean:+.2f}{around} points "
        f"({each}); {verdict}."
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, one line per row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def central_table(rows: Sequence[Row]) -> str:
    scale, unit = (1e6, "M") if rows[0].params >= 1e6 else (1e3, "thousands")
    header = f"method|params ({unit})|throughput|generic|specific|top-1|each seed|share"
    return markdown(
        header.split("|"),
        [
            (
                row.method,
                f"{row.params / scale:.2f}",
                f"{row.throughput:.2f}x",
                row.generic,
                row.specific,
                plus_minus(row.top1),
                ", ".join(f"{top1:.1f}" for top1 in row.top1),
                f"{100 * row.mean / rows[0].mean:.1f} %",
            )
            for row in rows
        ],
    )


def plus_minus(values: Sequence[float]) -> str:
    deviation = spread(values)
    around = "" if deviation is None else f" ± {deviation:.2f}"
    return f"{statistics.fmean(values):.2f}{around}"


def step_table(config: ConfigDict, workdir: str, seconds: Mapping[str, float]) -> str:
    """Recipe, length and time of every step; the first seed also compiles."""
    rows = []
    for name, spec, _ in config.steps:
        runs = [f"seed{seed}/{name}" for seed in config.seeds]
        of = read_config(os.path.join(workdir, runs[0]))
        done = read_json(os.path.join(workdir, runs[0], train.DONE))
        took = [f"{seconds[run]:.1f}" if run in seconds else "?" for run in runs]
        rows.append(
            (
                name,
                f"`{spec}`",
                str(done["step"]),
                str(of.batch),
                f"{of.optim.lr:g}",
                *took,
            )
        )
    times = [f"s, seed {seed}" for seed in config.seeds]
    return markdown(["step", "recipe", "steps", "batch", "lr", *times], rows)


def environment(workdir: str) -> str:
    """One line on what the numbers depend on besides the configs."""
    found = read_json(os.path.join(workdir, "environment.json"))
    commit, devices = found.pop("commit"), ", ".join(found.pop("devices"))
    count = found.pop("device_count")
    found.pop("process_count")
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"Ran on {count} x {devices}, {os.cpu_count()} cores, at commit "
        f"{commit or 'unknown'}, with {versions}"
    )


def loss_curves(workdir: str, config: ConfigDict, step: str) -> dict[str, np.ndarray]:
    """{seed: [logged, 2] step and loss} of one step."""
    curves = {}
    for seed in config.seeds:
        path = os.path.join(workdir, f"seed{seed}", step, "metrics.jsonl")
        told = [row for row in metrics.read_lines(path) if row.get("loss") is not None]
        points = [(row["step"], row["loss"]) for row in told]
        curves[f"seed {seed}"] = np.array(points).reshape(-1, 2)
    return curves


def draw_losses(losses: Mapping[str, Mapping[str, np.ndarray]]) -> figure.Figure:
    """One plot per step of the chain, one line per seed."""
    columns = min(4, len(losses))
    lines = -(-len(losses) // columns)
    sheet = figure.Figure(figsize=(3 * columns, 2.4 * lines), layout="constrained")
    axes = sheet.subplots(lines, columns, squeeze=False).flat
    for axis, (name, curves) in zip(axes, losses.items(), strict=False):
        for label, curve in curves.items():
            axis.plot(curve[:, 0], curve[:, 1], label=label, linewidth=1)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("loss", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in list(sheet.axes)[len(losses) :]:
        axis.set_visible(False)
    sheet.axes[0].legend(fontsize=7)
    return sheet


def reconstruct(workdir: str) -> dict[str, np.ndarray]:
    """{title: [EXAMPLES, H, W, C] in 0..1}: images, what is seen, what is guessed."""
    config = read_config(workdir)
    model = mae.autoencoder(config.model, **layers.machine(config))
    variables = checkpoint.load_variables(
        workdir,
        lambda weights: lambda key: mae.init(model, key),
        grid=model.grid,
        key="workdir",
    )
    held_out = source.load(config, config.data.eval_split, evaluate=True)
    chosen = np.linspace(0, held_out.count - 1, EXAMPLES).astype(np.int64)
    spec = augment.spec(config, train=False)
    image = augment.prepare(held_out.fetch(chosen), {}, spec)["image"]
    key = core.stream_keys(jax.random.key(config.seed), "report")["report"]
    noise = jax.random.uniform(key, (EXAMPLES, model.grid[0] * model.grid[1]))
    masking = patches.mask(noise, config.mask_ratio)
    guess = jax.jit(model.apply)(variables, image, masking).pixels
    truth = patches.patchify(image, model.patch)  # [B, N, P]
    if config.target == "normalised":
        guess = denormalise(guess, truth)
    removed = masking.removed[..., None]
    grey = np.full(truth.shape, np.nan)
    shown = {
        "original": truth,
        "visible": np.where(removed, grey, truth),
        "reconstruction": np.where(removed, guess, truth),
    }
    pixels = lambda x: np.asarray(patches.unpatchify(x, model.patch, model.grid))
    mean, std = (np.asarray(value) for value in (config.data.mean, config.data.std))
    return {name: np.clip(pixels(x) * std + mean, 0, 1) for name, x in shown.items()}


def denormalise(guess: jax.Array, truth: jax.Array) -> jax.Array:
    """Undoes `masked.normalise_patches` with the statistics of the true patches."""
    variance = truth.var(axis=-1, keepdims=True, ddof=1)
    return guess * np.sqrt(variance + 1e-6) + truth.mean(axis=-1, keepdims=True)


def draw_images(shown: Mapping[str, np.ndarray]) -> figure.Figure:
    """One line of images per title; what is not known (NaN) is blue."""
    count = len(next(iter(shown.values())))
    size = (1.1 * count + 0.6, 1.2 * len(shown))
    sheet = figure.Figure(figsize=size, layout="constrained")
    axes = sheet.subplots(len(shown), count, squeeze=False)
    for line, (title, images) in zip(axes, shown.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            hidden = np.isnan(image).any(axis=-1, keepdims=True)
            colour = np.broadcast_to(image, (*image.shape[:2], 3))
            axis.imshow(np.where(hidden, HIDDEN, colour))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=9)
    return sheet
