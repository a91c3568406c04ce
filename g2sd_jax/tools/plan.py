# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recipe needs of devices that are not here: `g2sd plan --config=RECIPE`.

The real training step and the real evaluation are compiled ahead of time, for a named
TPU topology on a CPU (libtpu is in the extra `tpu`) or for what is here; no data, no
weights and no TPU are needed. Every figure says where it comes from.
"""

import json
from collections.abc import Sequence

from g2sd_jax import command, open_keys, recipes
from g2sd_jax.measure import (
    budget,
    compiled,
    plan_text,
    shapes,
    topology,
)


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("plan")
    parser.add_argument("--topology", default="", help="v5e:8x8, v4:2x2x4; '': here")
    parser.add_argument(
        "--out",
        type=command.output_file,
        default="",
        help="file for the figures, as JSON",
    )
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
    parser.add_argument(
        "--input",
        default="",
        metavar="FILE",
        help="what `g2sd bench --input --out=FILE` measured, to compare with the need",
    )
    parser.add_argument("--price", type=float, help="of one chip for one hour")
    parser.add_argument("--hours", type=float, help="how far the recipe gets in these")
    args = recipes.parse(parser, argv)
    budget.check(args)
    recipes.check_ranges(args.config)
    config = shapes.without_weights(open_keys.assume(args.config))
    where = topology.named(args.topology) if args.topology else topology.here(config)
    figures = compiled.plan(config, where, evaluate=not args.no_eval)
    figures["spec"] = args.spec
    figures["recipe"] = budget.recipe(config, figures, args)
    print(plan_text.describe(figures), flush=True)
    if args.sweep:
        figures["sweep"] = budget.sweep(args.sweep, config, where, compiled.plan)
        print(plan_text.table(figures["sweep"]), flush=True)
    print(plan_text.verdict(figures), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")
    return 0
