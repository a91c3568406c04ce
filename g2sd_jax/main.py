# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains one stage: `python -m g2sd_jax.main --config=RECIPE --workdir=DIR`."""

import importlib
import sys
from collections.abc import Sequence

from g2sd_jax import command, recipes
from g2sd_jax.hosts import cluster


def main(argv: Sequence[str]) -> int:
    """Runs `g2sd train`."""
    parser = command.Parser("train")
    cluster.arguments(parser)
    parser.add_argument(
        "--workdir", required=True, help="folder of the run; a run in it is resumed"
    )
    args = recipes.parse(parser, argv)
    if "steps" in args.config and "stage" not in args.config:
        raise ValueError("this recipe is a chain of stages; run it with g2sd chain.")
    # Only now: a mistake on the command line is reported before models are imported.
    loop = importlib.import_module("g2sd_jax.loop")
    with cluster.joined(args):
        loop.run(args.config, args.workdir)
    return 0


if __name__ == "__main__":
    argv = sys.argv[1:]
    sys.exit(command.guarded(lambda: main(argv), debug="--debug" in argv))
