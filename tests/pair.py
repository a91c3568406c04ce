# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One process of a tiny run: `python tests/pair.py WORKDIR STAGE…`, and its place."""

import argparse
import time

import jax

import runs
from g2sd_jax import cli, cluster, core, metrics, train


def main() -> int:
    parser = argparse.ArgumentParser()
    cluster.arguments(parser)
    parser.add_argument("workdir")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0, help="seconds per step")
    args = parser.parse_args()
    swap = metrics.Late.swap

    def slowly(late, step, told):
        time.sleep(args.slow)  # So that there is a step to interrupt.
        return swap(late, step, told)

    metrics.Late.swap = slowly
    with cluster.joined(args):
        jax.config.update("jax_default_matmul_precision", "highest")
        for stage in args.stages:
            config = runs.small(stage, total_steps=args.steps, seed=args.seed)
            train.run(config, f"{args.workdir}/{stage}")
    return core.EXIT_DONE


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
