# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Says what a run's folder or a weight file holds: `g2sd inspect PATH`."""

from collections.abc import Sequence

from g2sd_jax import cli
from g2sd_jax.tools import inspect_file


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("inspect")
    parser.add_argument(
        "path", help="a workdir, a weight file, or a directory of timm or transformers"
    )
    print(run(parser.parse_args(argv).path))
    return 0


def run(path: str) -> str:
    """A line per fact."""
    return "\n".join(inspect_file.lines(path))
