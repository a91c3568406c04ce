# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Says what a run's folder or a weight file holds: `g2sd inspect PATH`."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from g2sd_jax import checkpoint, cli, core
from g2sd_jax.tools import inspect_file

KINDS = ("vit", "mae", "segmentor")  # Whose parts and uses `inspect_file` can tell.


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("inspect")
    parser.add_argument(
        "path",
        help="a workdir, or WORKDIR/checkpoints/STEP for one of several; a weight "
        "file, or a directory of timm or transformers",
    )
    print(run(parser.parse_args(argv).path))
    return 0


def run(path: str) -> str:
    """A line per fact."""
    workdir, _ = checkpoint.split_step(path)
    if not (epath.Path(workdir) / checkpoint.FOLDER).is_dir():
        return "\n".join(inspect_file.lines(path))
    held = checkpoint.read_run(path, inspect_file.KEY, all_of_it=True)
    known = held.describe.get("kind") in KINDS
    return "\n".join(facts(held) + (inspect_file.lines(path) if known else []))


def facts(held: checkpoint.Held) -> list[str]:
    """What a run's checkpoint is; two with equal digests hold the same bits."""
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
    return [f"{name}: {value}" for name, value in lines.items()]


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
