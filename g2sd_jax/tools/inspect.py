# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Says what a run's folder holds: `g2sd inspect WORKDIR`."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from g2sd_jax import checkpoint, cli, core


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("inspect")
    parser.add_argument(
        "path", help="a workdir, or WORKDIR/checkpoints/STEP for one of several"
    )
    print(run(parser.parse_args(argv).path))
    return 0


def run(path: str) -> str:
    """A line per fact; two runs with equal digests hold the same bits."""
    held = checkpoint.read_run(path, "inspect", all_of_it=True)
    described = dict(held.describe)
    lines = {
        "stage": described.pop("stage", None),
        "step": held.step,
        "checkpoints": ", ".join(map(str, held.steps)),
        "parameters": f"{sum(x.size for x in jax.tree.leaves(held.state['params'])):,}",
        **{f"{name} sha256": digest(tree) for name, tree in held.state.items()},
        **core.flatten({"scores": {str(k): v for k, v in held.scores.items()}}),
        **core.flatten(described),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def digest(tree) -> str:
    """Of every leaf's path, type, shape and bytes, in the order of the paths."""
    sha = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for path, leaf in sorted(named.items()):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{path} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
