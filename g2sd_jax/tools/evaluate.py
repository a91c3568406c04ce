# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How good a finished model is: `g2sd evaluate --workdir=DIR`.

The stage's own evaluators over the evaluation split, with the tables they make;
`--config.data.KEY=VALUE` evaluates on other data.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import command, finished, parallel, workdir
from g2sd_jax.evaluators import fold, tables
from g2sd_jax.weights import agreement, loading


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("evaluate")
    parser.add_argument(
        "--out",
        type=command.output_file,
        default="",
        help="file for all figures, as JSON",
    )
    args = finished.parse(parser, argv)
    figures = evaluate(args.finished)
    parallel.print_once(describe(figures))
    if args.out and jax.process_index() == 0:
        workdir.write_json(args.out, workdir.finite(figures))
    return 0


def evaluate(model: finished.Finished) -> dict:
    """Every figure of every evaluator, and the weights and data they are of."""
    if not model.stage.evaluators:
        raise ValueError(
            f"stage {model.config.stage} judges nothing as it is; set "
            "--config.monitor.loss=true or --config.monitor.neighbours=20."
        )
    agreement.check_classes(
        loading.Weights(model.source, {}, model.describe),
        model.stage.classes,
        "--workdir or --checkpoint",
    )
    mesh = parallel.make_mesh(model.config.mesh)
    variables = parallel.place(
        model.variables, parallel.shardings(model.variables, mesh)
    )
    class_names = model.describe.get("class_names") or ()
    figures = {}
    for name, evaluator in model.stage.evaluators.items():
        frozen = model.frozen(evaluator)
        frozen = parallel.place(frozen, parallel.shardings(frozen, mesh))
        stopwatch = Stopwatch(evaluator.batches)
        predict = fold.compile_predict(evaluator, mesh)
        timed = evaluator._replace(batches=stopwatch)
        state = fold.fold(timed, predict, mesh, variables, frozen)
        figures[name] = dict(
            metrics=evaluator.finish(state),
            **stopwatch.rate(evaluator.rate_unit),
            **tables.to_json(evaluator.tables(state, class_names)),
        )
    return dict(
        weights=model.source,
        stage=model.config.stage,
        params=model.params,
        data=workdir.to_json_dict(model.config.data),
        evaluators=figures,
        environment=workdir.environment(),
    )


class Stopwatch:
    """Times all batches but the first, for which `predict` is compiled."""

    def __init__(self, batches: Callable, now: Callable[[], float] = time.perf_counter):
        self._batches, self._now = batches, now
        self._count, self._began, self._ended = 0, None, None

    def __call__(self):
        for batch, examples in self._batches():
            if self._began is not None:
                self._count += int(np.sum(batch["valid"]))
            yield batch, examples
            # Here again once the batch is scored, so its outputs have arrived.
            self._ended = self._now()
            self._began = self._began or self._ended

    def rate(self, unit: str = "images") -> dict[str, float]:
        """`images_per_s` of this process, reading included; {} of a single batch."""
        if not self._count:
            return {}
        return {f"{unit}_per_s": self._count / (self._ended - self._began)}


def describe(figures: Mapping) -> str:
    """The figures as lines for a reader."""
    lines = [
        f"{figures['weights']} ({figures['stage']}, {figures['params']:,} parameters) "
        f"on split {figures['data']['eval_split']!r} of "
        f"{figures['data']['path'] or figures['data']['source']}:"
    ]
    for name, results in figures["evaluators"].items():
        rates = {key: rate for key, rate in results.items() if key.endswith("_per_s")}
        numbers = {**results["metrics"], **rates}
        listed = ", ".join(f"{key} {figure(value)}" for key, value in numbers.items())
        lines.append(f"  {name}: {listed}")
        lines += tables.lines(tables.from_json(results))
    return "\n".join(lines)


def figure(value: float) -> str:
    """A number as text: counts in full, others with four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
