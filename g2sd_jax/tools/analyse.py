# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Students beside their teacher: `g2sd analyse TEACHER STUDENT… --out=FILE.json`.

As the paper shows it: parameters and throughput, accuracy when patches are hidden, and
how alike their blocks see the same pictures. The first model is the reference. The
folder of a chain stands for the models of its table, of its first seed.
"""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import cli, core, metrics, workdir
from g2sd_jax.models import features
from g2sd_jax.ops import augment, occlusion, similarity
from g2sd_jax.tools import finished, speed

FILE = "analysis.json"
PARTS = ("throughput", "occlusion", "cka")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCORES = ("top1", "mIoU")  # Of an evaluator's metrics, the one that is drawn.


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("analyse")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--out", default="", help=f"default: {FILE} in the folder of a chain"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them")
    parser.add_argument("--examples", type=int, default=2048, help="pictures for CKA")
    parser.add_argument("--token", default="patches", help="for CKA: patches or class")
    parser.add_argument("--seed", type=int, default=0, help="of the random occlusion")
    args = parser.parse_args(argv)
    parts = [core.one_of("--parts", part, PARTS) for part in args.parts.split(",")]
    core.one_of("--token", args.token, features.TOKENS)
    named, chain = finished.expand(args.workdirs)
    out = args.out or (os.path.join(chain, FILE) if chain else "")
    if not out:
        raise ValueError("--out=FILE.json is needed, unless a chain's folder is named.")
    models = {name: finished.from_run(path) for name, path in named.items()}
    found = dict(
        models=[
            dict(name=name, workdir=model.source, params=model.params)
            for name, model in models.items()
        ],
        environment=workdir.environment(),
    )
    if "throughput" in parts:
        found["throughput"] = timed(models)
    if "occlusion" in parts:
        found["occlusion"] = occluded(models, args.seed)
    if "cka" in parts:
        found["cka"] = alike(models, args.token, args.examples)
    workdir.write_json(out, found)
    metrics.say(f"{describe(found)}\nwritten to {out}; g2sd report draws it")
    return 0


def timed(models: Mapping[str, finished.Finished]) -> dict:
    """{name: its `speed.Speed` as a dict}."""
    speeds = speed.compare(list(models.values()))
    return {name: each._asdict() for name, each in zip(models, speeds, strict=True)}


def occluded(
    models: Mapping[str, finished.Finished],
    seed: int = 0,
    shares: Sequence[float] = SHARES,
) -> dict:
    """Every model's scores over the share of patches that are blanked.

    All models lose the same patches, those that count for the reference's answer.
    """
    reference, *_ = models.values()
    evaluators = {name: speed.evaluator_of(model) for name, model in models.items()}
    patch, grid = _patches(models)
    total = grid[0] * grid[1]
    counts = sorted({round(share * total) for share in shares})
    ask = {name: _blanked(models[name], evaluators[name], patch) for name in models}
    rank = _ranker(reference, speed.evaluator_of(reference), patch)
    given = {
        name: jax.device_put((model.variables, model.frozen(evaluators[name])))
        for name, model in models.items()
    }
    first = next(iter(models))
    states = {
        (name, order, count): evaluators[name].start()
        for name in models
        for order in occlusion.ORDERS
        for count in counts
    }
    key, seen = jax.random.key(seed), 0
    for number, (batch, examples) in enumerate(evaluators[first].batches()):
        seen += len(examples)
        orders = rank(*given[first], batch, jax.random.fold_in(key, number))
        for name, order, count in states:
            outputs = ask[name](*given[name], batch, orders[order], count)
            state = states[name, order, count]
            states[name, order, count] = evaluators[name].update(
                state, jax.device_get(outputs), examples
            )
    scores = {at: evaluators[at[0]].finish(state) for at, state in states.items()}
    score = next(key for key in SCORES if key in scores[first, "random", counts[0]])
    return dict(
        names=list(models),
        reference=first,
        score=score,
        examples=seen,
        patches=total,
        hidden=counts,
        curves={
            name: {
                order: [scores[name, order, count][score] for count in counts]
                for order in occlusion.ORDERS
            }
            for name in models
        },
    )


def _patches(models):
    """The patch and grid that all models share."""
    seen = {
        name: (model.model().patch, tuple(model.describe["grid"]))
        for name, model in models.items()
    }
    if len(set(seen.values())) > 1:
        raise ValueError(
            f"models with other patches cannot lose the same ones: {seen}."
        )
    return next(iter(seen.values()))


def _blanked(model, evaluator, patch):
    """(variables, frozen, batch, ranks, count) -> answers, jitted."""

    def ask(variables, frozen, batch, ranks, count):
        batch = augment.prepare(batch, {}, model.spec)
        image = occlusion.blank(batch["image"], ranks, count, patch)
        return evaluator.predict(variables, frozen, {**batch, "image": image})

    return jax.jit(ask)


def _ranker(model, evaluator, patch):
    """(variables, frozen, batch, key) -> {order: ranks}, jitted."""

    def rank(variables, frozen, batch, key):
        batch = augment.prepare(batch, {}, model.spec)

        def answer(image):
            outputs = evaluator.predict(variables, frozen, {**batch, "image": image})
            return core.lookup("what the reference answers", "logits", outputs)

        scores = occlusion.saliency(answer, batch["image"], patch)
        return {
            order: occlusion.ranks(key, scores, order) for order in occlusion.ORDERS
        }

    return jax.jit(rank)


def alike(models: Mapping[str, finished.Finished], token: str, examples: int) -> dict:
    """CKA of every model's blocks with the reference's, on the same pictures."""
    (first, reference), *others = models.items()
    batches = speed.evaluator_of(reference).batches
    theirs = blocks(reference, batches, token, examples)
    found = {}
    for name, model in others:
        mine = blocks(model, batches, token, examples)
        found[name] = dict(
            cka=similarity.layerwise(mine, theirs).tolist(),
            noise=similarity.noise_level(
                theirs.shape[1], mine.shape[2], theirs.shape[2]
            ),
        )
    return dict(
        names=list(models),
        reference=first,
        token=token,
        examples=theirs.shape[1],
        against=found,
    )


def blocks(model: finished.Finished, batches, token: str, examples: int) -> np.ndarray:
    """[depth, N, D] features after every block of the first N pictures."""
    module = model.model()
    ask = jax.jit(
        lambda variables, batch: features.blocks(
            module, variables, augment.prepare(batch, {}, model.spec)["image"], token
        )
    )
    variables = jax.device_put(model.variables)
    rows, count = [], 0
    for batch, _ in batches():
        rows.append(np.asarray(ask(variables, batch))[:, batch["valid"]])
        count += rows[-1].shape[1]
        if count >= examples:
            break
    return np.concatenate(rows, axis=1)[:, :examples]


def describe(found: Mapping) -> str:
    """The figures as lines for a reader."""
    lines = []
    for model in found["models"]:
        name, told = model["name"], [f"{model['params']:,} parameters"]
        if "throughput" in found:
            each = found["throughput"][name]
            told.append(f"{each['relative']:.2f}x ({each['images_per_s']:,.0f}/s)")
        if "occlusion" in found:
            part = found["occlusion"]
            half = min(
                range(len(part["hidden"])),
                key=lambda i: abs(part["hidden"][i] / part["patches"] - 0.5),
            )
            share = 100 * part["hidden"][half] / part["patches"]
            curves = part["curves"][name]
            told += [f"{part['score']} {curves['random'][0]:.2f}"]
            told += [
                f"{curve[half]:.2f} without {share:.0f} % {order} patches"
                for order, curve in curves.items()
            ]
        if name in found.get("cka", {}).get("against", {}):
            part = found["cka"]["against"][name]
            told.append(f"CKA of the last blocks {part['cka'][-1][-1]:.3f}")
        lines.append(f"{name}: {', '.join(told)}")
    return "\n".join(lines)
