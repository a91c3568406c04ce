# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One process of a tiny run: `python tests/pair.py WORKDIR STAGE…`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

import jax

import runs
from g2sd_jax import command, loop, metrics
from g2sd_jax.hosts import cluster


def main(argv: Sequence[str]) -> int:
    """Trains the stages one after another, alone or as one of several processes."""
    parser = argparse.ArgumentParser()
    cluster.arguments(parser)
    parser.add_argument("workdir")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval", type=float, default=100.0, help="epochs between")
    parser.add_argument("--init", default="", help="workdir or file of the weights")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds per step")
    args = parser.parse_args(argv)
    swap = metrics.Late.swap

    def slow_swap(late, step, step_metrics):
        time.sleep(args.slow)  # So that there is a step to interrupt.
        return swap(late, step, step_metrics)

    metrics.Late.swap = slow_swap
    with cluster.joined(args):
        jax.config.update("jax_default_matmul_precision", "highest")
        for stage in args.stages:
            config = runs.small(
                stage,
                eval_epochs=args.eval,
                total_steps=args.steps,
                seed=args.seed,
                first_batch_images=10,
                **(dict(init_from=args.init) if args.init else {}),
            )
            loop.run(config, f"{args.workdir}/{stage}")
    return 0


def live(argv: Sequence[str], log: str) -> None:
    """Runs `main` as a process that was forked after the imports.

    Args:
        argv: of `main`.
        log: file that takes standard output and standard error.
    """
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.exit(command.guarded(lambda: main(argv)))


if __name__ == "__main__":
    sys.exit(command.guarded(lambda: main(sys.argv[1:])))
