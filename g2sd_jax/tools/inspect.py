# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The content of a run's folder or a weight file: `g2sd inspect PATH`."""

import hashlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from g2sd_jax import checkpoint, command, errors, kinds
from g2sd_jax.weights import description, loading

KEY = "g2sd inspect"


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("inspect")
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
        return "\n".join(weight_lines(path))
    loaded = checkpoint.read_run(path, KEY, optimiser_state=True)
    described = loaded.describe.get("kind") in kinds.KINDS
    return "\n".join(facts(loaded) + (weight_lines(path) if described else []))


def weight_lines(path: str) -> list[str]:
    """Lines on the weights of a file, a directory of timm or transformers, or a run.

    Raises:
        ValueError: they can not be read, or are of no kind.
    """
    weights = loading.read(path, KEY, finite=False)
    kind = kinds.by_name(kinds.name_of(weights))
    count = sum(array.size for array in weights.arrays.values())
    return [
        f"{path}: {count:,} numbers in {len(weights.arrays)} arrays",
        *description.publication(path),
        *kind.holds(weights),
        *description.not_finite(weights.arrays),
        *kind.serves(weights),
    ]


def facts(loaded: checkpoint.LoadedCheckpoint) -> list[str]:
    """Lines on a run's checkpoint; two with equal digests have the same bits."""
    describe = dict(loaded.describe)
    params = jax.tree.leaves(loaded.state["params"])
    lines = {
        "stage": describe.pop("stage", None),
        "step": loaded.step,
        "checkpoints": ", ".join(map(str, loaded.steps)),
        "parameters": f"{sum(leaf.size for leaf in params):,}",
        **{f"{name} sha256": digest(tree) for name, tree in loaded.state.items()},
        **errors.flatten({"scores": {str(k): v for k, v in loaded.scores.items()}}),
        **errors.flatten(describe),
    }
    return [f"{name}: {value}" for name, value in lines.items()]


def digest(tree: Mapping) -> str:
    """SHA-256 of the path, type, shape and bytes of every leaf, sorted by path."""
    sha = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    by_path = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for path, leaf in sorted(by_path.items()):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{path} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
