# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Students beside their teacher: `g2sd analyse TEACHER STUDENT… --out=FILE.json`.

As in the paper: parameters and throughput, accuracy under occlusion of patches, and
similarity of blocks on the same pictures (CKA). The first model is the reference. The
folder of a chain stands for the models of its table, of its first seed.
"""

import os
from collections.abc import Mapping, Sequence

from g2sd_jax import command, errors, finished, parallel, workdir
from g2sd_jax.measure import likeness
from g2sd_jax.models import features


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("analyse")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--out",
        type=command.output_file,
        default="",
        help=f"default: {likeness.FILE} in the folder of a chain",
    )
    parser.add_argument(
        "--parts", default=",".join(likeness.PARTS), help="some of them"
    )
    parser.add_argument("--examples", type=int, default=2048, help="pictures for CKA")
    parser.add_argument("--token", default="patches", help="for CKA: patches or class")
    parser.add_argument("--seed", type=int, default=0, help="of the random occlusion")
    args = parser.parse_args(argv)
    parts = [
        errors.one_of("--parts", part, likeness.PARTS) for part in args.parts.split(",")
    ]
    errors.one_of("--token", args.token, features.TOKENS)
    workdirs, chain = finished.expand(args.workdirs)
    out = args.out or (os.path.join(chain, likeness.FILE) if chain else "")
    if not out:
        raise ValueError("--out=FILE.json is needed, unless a chain's folder is named.")
    models = {name: finished.from_run(path) for name, path in workdirs.items()}
    analysis = dict(
        models=[
            dict(name=name, workdir=model.source, params=model.params)
            for name, model in models.items()
        ],
        environment=workdir.environment(),
    )
    if "throughput" in parts:
        analysis["throughput"] = likeness.throughputs(models)
    if "occlusion" in parts:
        analysis["occlusion"] = likeness.occlusion_curves(models, args.seed)
    if "cka" in parts:
        analysis["cka"] = likeness.cka_maps(models, args.token, args.examples)
    workdir.write_json(out, analysis)
    parallel.print_once(f"{describe(analysis)}\nwritten to {out}; {where_drawn(out)}")
    return 0


def where_drawn(out: str) -> str:
    """Says which `g2sd report` draws the figures in a file, or what it would take."""
    folder, name = os.path.split(os.path.abspath(out))
    read = any(
        os.path.exists(os.path.join(folder, file))
        for file in (workdir.CONFIG, finished.CHAIN)
    )
    if read and name == likeness.FILE:
        return f"g2sd report {folder} draws it"
    return (
        f"g2sd report draws it once it lies in the folder of a run or a chain, as "
        f"{likeness.FILE}"
    )


def describe(analysis: Mapping) -> str:
    """The figures as a line per model."""
    lines = []
    for model in analysis["models"]:
        name, figures = model["name"], [f"{model['params']:,} parameters"]
        if "throughput" in analysis:
            speed = analysis["throughput"][name]
            figures.append(f"{speed['relative']:.2f}x ({speed['images_per_s']:,.0f}/s)")
        if "occlusion" in analysis:
            figures += occlusion_figures(analysis["occlusion"], name)
        if name in analysis.get("cka", {}).get("against", {}):
            similarity = analysis["cka"]["against"][name]["cka"]
            figures.append(f"CKA of the last blocks {similarity[-1][-1]:.3f}")
        lines.append(f"{name}: {', '.join(figures)}")
    return "\n".join(lines)


def occlusion_figures(occlusion: Mapping, name: str) -> list[str]:
    """A model's score on whole pictures, and with about half of the patches hidden."""
    shares = [count / occlusion["patches"] for count in occlusion["hidden"]]
    half = min(range(len(shares)), key=lambda i: abs(shares[i] - 0.5))
    curves = occlusion["curves"][name]
    return [
        f"{occlusion['score']} {curves['random'][0]:.2f}",
        *(
            f"{curve[half]:.2f} without {100 * shares[half]:.0f} % {order} patches"
            for order, curve in curves.items()
        ),
    ]
