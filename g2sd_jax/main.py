# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains one stage: `python -m g2sd_jax.main --config=RECIPE --workdir=DIR`."""

import importlib
import sys
from collections.abc import Sequence

from g2sd_jax import cli, cluster, recipes


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("train")
    cluster.arguments(parser)
    parser.add_argument(
        "--workdir", required=True, help="folder of the run; a run in it is resumed"
    )
    args = recipes.parse(parser, argv)
    if "steps" in args.config and "stage" not in args.config:
        raise ValueError("this recipe is a chain of stages; run it with g2sd chain.")
    # Only now: a mistake on the command line is told before the models are imported.
    train = importlib.import_module("g2sd_jax.train")
    with cluster.joined(args):
        train.run(args.config, args.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
