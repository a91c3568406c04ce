# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How good a finished model is: `g2sd evaluate --workdir=DIR`.

The stage's own evaluators over the evaluation split, so classification and dense tasks
look the same here; `--config.data.KEY=VALUE` judges on other data.
"""

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import cli, evaluation, metrics, parallel, workdir
from g2sd_jax.tasks import confusion
from g2sd_jax.tools import finished

SHOWN = 20  # Classes whose rows are printed; the file has all.


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("evaluate")
    parser.add_argument("--out", default="", help="file for all figures, as JSON")
    args = finished.parse(parser, argv)
    figures = evaluate(args.finished)
    metrics.say(describe(figures))
    if args.out and jax.process_index() == 0:
        workdir.write_json(args.out, figures)
    return 0


def evaluate(model: finished.Finished) -> dict:
    """Every figure of every evaluator, with what it was measured on."""
    if not model.stage.evaluators:
        raise ValueError(
            f"stage {model.config.stage} judges nothing as it is; set "
            "--config.signal.loss=true or --config.signal.neighbours=20."
        )
    mesh = parallel.make_mesh(model.config.mesh)
    variables = parallel.place(
        model.variables, parallel.shardings(model.variables, mesh)
    )
    found = {}
    for name, evaluator in model.stage.evaluators.items():
        frozen = model.frozen(evaluator)
        frozen = parallel.place(frozen, parallel.shardings(frozen, mesh))
        watch = Stopwatch(evaluator.batches)
        predict = evaluation.compiled(evaluator, mesh)
        timed = evaluator._replace(batches=watch)
        state = evaluation.fold(timed, predict, mesh, variables, frozen)
        unit = "windows" if model.segments else "images"
        found[name] = dict(metrics=evaluator.finish(state), **watch.rate(unit))
        if evaluator.confusion:
            names = model.describe.get("class_names") or ()
            counts = evaluator.confusion(state)
            if len(names) != len(counts):
                names = ()
            found[name]["confusion"] = counts.tolist()
            found[name]["classes"] = confusion.breakdown(counts, names)
    return dict(
        weights=model.source,
        stage=model.config.stage,
        params=model.params,
        data=workdir.plain(model.config.data),
        evaluators=found,
        environment=workdir.environment(),
    )


class Stopwatch:
    """Times all batches but the first, which is compiled for."""

    def __init__(self, batches, now=time.perf_counter):
        self._batches, self._now = batches, now
        self._seen, self._began, self._ended = 0, None, None

    def __call__(self):
        for batch, examples in self._batches():
            if self._began is not None:
                self._seen += int(np.sum(batch["valid"]))
            yield batch, examples
            # Here again once the batch is judged, so its outputs have arrived.
            self._ended = self._now()
            self._began = self._began or self._ended

    def rate(self, unit: str = "images") -> dict:
        """`images_per_s` of this process, reading included; {} of a single batch."""
        if not self._seen:
            return {}
        return {f"{unit}_per_s": self._seen / (self._ended - self._began)}


def describe(figures: Mapping) -> str:
    """The figures as lines for a reader."""
    lines = [
        f"{figures['weights']} ({figures['stage']}, {figures['params']:,} parameters) "
        f"on split {figures['data']['eval_split']!r} of "
        f"{figures['data']['path'] or figures['data']['source']}:"
    ]
    for name, found in figures["evaluators"].items():
        rates = {key: value for key, value in found.items() if key.endswith("_per_s")}
        told = {**found["metrics"], **rates}
        exact = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        scores = ", ".join(f"{key} {exact(value)}" for key, value in told.items())
        lines.append(f"  {name}: {scores}")
        if "classes" not in found:
            continue
        if "mIoU" in told:
            lines += ["", *pixel_lines(found["classes"]), ""]
            lines += matrix_lines(of_rows(found["confusion"]), " in % of its pixels")
        else:
            lines += ["", *class_lines(found["classes"]), ""]
            lines += matrix_lines(found["confusion"])
    return "\n".join(lines)


def class_lines(rows: Sequence[Mapping]) -> list[str]:
    """The per-class table; of many classes, those that are found least often."""
    shown, width, note = lowest(rows, "recall")
    lines = [f"  {'class':{width}}   count  found %  right %  most often taken for"]
    for row in shown:
        found, right = (percent(row[key]) for key in ("recall", "precision"))
        other = "{} ({})".format(*row["mistaken_for"]) if row["mistaken_for"] else ""
        name, count = row["name"], row["count"]
        lines.append(f"  {name:{width}}  {count:>6}  {found:>7}  {right:>7}  {other}")
    return lines + note


def pixel_lines(rows: Sequence[Mapping]) -> list[str]:
    """The same of a segmentor: how much of the pixels a class has, IoU and Acc."""
    shown, width, note = lowest(rows, "iou")
    lines = [f"  {'class':{width}}  share %   IoU %   Acc %  most often taken for"]
    for row in shown:
        told = [percent(row[key]) for key in ("share", "iou", "recall")]
        other = ""
        if row["mistaken_for"]:
            wrong, count = row["mistaken_for"]
            other = f"{wrong} ({100 * count / row['count']:.1f} % of it)"
        share, iou, accuracy = told
        name = f"{row['name']:{width}}"
        lines.append(f"  {name}  {share:>7}  {iou:>6}  {accuracy:>6}  {other}")
    return lines + note


def lowest(rows, key):
    """The rows that are shown, the width of their names, and what is left out."""
    shown, note = rows, []
    if len(rows) > SHOWN:
        known = [row for row in rows if row[key] is not None]
        shown = sorted(known, key=lambda row: row[key])[:SHOWN]
        note = [f"  (the {SHOWN} lowest of {len(rows)} classes; --out has all)"]
    return shown, max([5, *(len(row["name"]) for row in shown)]), note


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def of_rows(counts: Sequence[Sequence[int]]) -> list[list[int]]:
    """[C, C] whole % of each row's sum, 0 where nothing was counted."""
    return [[round(100 * n / max(1, sum(row))) for n in row] for row in counts]


def matrix_lines(counts: Sequence[Sequence[int]], unit: str = "") -> list[str]:
    """The confusion matrix, if it can be read."""
    if len(counts) > SHOWN:
        return []
    width = 1 + max(len(str(value)) for row in counts for value in [*row, len(counts)])
    lines = [f"  confusion, one row per true class{unit}:"]
    for label, row in enumerate(counts):
        cells = "".join(f"{value:>{width}}" for value in row)
        lines.append(f"  {label:>4}:{cells}")
    return lines
