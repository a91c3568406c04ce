# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a recipe's own step runs: `g2sd bench --config=RECIPE`.

The real jitted step, on invented batches that already lie on the device and, where the
recipe names no teacher, an untrained one: no data and no weights are needed. With
`--input` its data alone, without the step.
"""

import argparse
import json
from collections.abc import Sequence

from g2sd_jax import (
    command,
    errors,
    open_keys,
    recipes,
)
from g2sd_jax.measure import augmentation, input_speed, step_speed
from g2sd_jax.models import layers


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("bench")
    parser.add_argument("--trace", default="", help="folder for a profiler trace")
    parser.add_argument(
        "--out",
        type=command.output_file,
        default="",
        help="file for the figures, as JSON",
    )
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
    recipes.check_ranges(args.config)
    config = args.config if args.input else open_keys.assume(args.config)
    if args.augment:
        describe = augmentation.describe
        canvas = augmentation.canvas_of(args.canvas) if args.canvas else None
        figures = [augmentation.measure(config, canvas)]
    elif args.input:
        describe = input_speed.describe
        figures = [input_speed.measure(args.config, args.original, args.step)]
    else:
        describe = step_speed.describe
        loops = [
            errors.one_of("--loops", form, step_speed.FORMS)
            for form in args.loops.split(",")
        ]
        peak = step_speed.matmul_peak(layers.compute_options(config)["dtype"])
        figures = [step_speed.measure(config, form, peak, args.trace) for form in loops]
    for row in figures:
        print(describe(row), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)
    return 0


def check(args: argparse.Namespace) -> None:
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
