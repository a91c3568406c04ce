# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion of parameter trees to PyTorch's names and layouts, and back.

A path in our tree is a name in a state dict but for four rules: blocks are stacked on
a leading [depth] axis, `kernel` and `scale` are called `weight`, a linear kernel is
transposed, and a convolution's is [kh, kw, in, out] instead of [out, in, kh, kw]. Trees
may be parameters, or variables with their batch statistics.

Blocks of unequal shapes that repeat are stacked each with its like: of twelve with the
period window, window, global, `blocks.1of3` holds numbers 1, 4, 7 and 10.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from g2sd_jax import errors
from g2sd_jax.ops import patches

COLLECTIONS = ("params", "batch_stats")  # Named by no state dict.
STACKED = ("blocks", "decoder_blocks")
OF_PERIOD = re.compile(r"(\d+)of(\d+)")  # A block's place in a period, its length.
RENAMED = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def leaf_names(
    path: str, leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct
) -> tuple[str, ...]:
    """The PyTorch names of one leaf, such as `blocks.attn.qkv.kernel`."""
    parts = path.split(".")
    if parts[-2:] == ["patch_embed", "kernel"] or parts[-2:] == ["patch_embed", "bias"]:
        parts.insert(-1, "proj")
    if parts[0] in COLLECTIONS:
        del parts[0]
    parts[-1] = RENAMED.get(parts[-1], parts[-1])
    at = next((i for i, part in enumerate(parts) if part in STACKED), None)
    if at is None:
        return (".".join(parts),)
    place = OF_PERIOD.fullmatch(parts[at + 1])
    first, period = map(int, place.groups()) if place else (0, 1)
    head = ".".join(parts[: at + 1])
    tail = ".".join(parts[at + 2 :] if place else parts[at + 1 :])
    return tuple(f"{head}.{first + i * period}.{tail}" for i in range(leaf.shape[0]))


def names(params: Mapping) -> dict:
    """The tree of `params` with each leaf replaced by its tuple of PyTorch names."""

    def walk(tree, prefix):
        if isinstance(tree, Mapping):
            return {key: walk(value, f"{prefix}{key}.") for key, value in tree.items()}
        return leaf_names(prefix[:-1], tree)

    return walk(params, "")


def stacked(path: str) -> bool:
    """Whether a leaf holds all blocks on its first axis."""
    return any(part in STACKED for part in path.split("."))


def _to_torch(path: str, array):
    if not path.endswith("kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.transpose(1, 0)


def _from_torch(path: str, array):
    if not path.endswith("kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose(1, 0)


def to_torch(params: Mapping, grid: tuple[int, int] | None = None) -> dict:
    """{PyTorch name: float32 numpy array} of a tree of parameters or variables.

    Args:
        params: our tree.
        grid: (rows, columns) of patches; with it, a masked autoencoder gets its sin-cos
            tables, which are constants here and entries of a state dict there.
    """
    arrays = {}
    for path, leaf in errors.flatten(params).items():
        value = np.asarray(jax.device_get(leaf), np.float32)
        layer_names = leaf_names(path, leaf)
        layers = value if stacked(path) else value[None]
        arrays.update(
            (name, _to_torch(path, layer))
            for name, layer in zip(layer_names, layers, strict=True)
        )
    if grid is not None:
        arrays.update(tables(arrays, grid))
    return arrays


def tables(arrays: Mapping, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """The sin-cos tables of a masked autoencoder's state dict, where it lacks them."""
    owner = {"cls_token": "pos_embed", "mask_token": "decoder_pos_embed"}
    return {
        table: patches.sincos_table(arrays[token].shape[-1], grid)
        for token, table in owner.items()
        if token in arrays and table not in arrays
    }


def shapes(params: Mapping) -> dict[str, tuple[int, ...]]:
    """{PyTorch name: PyTorch shape} of a tree of arrays or `ShapeDtypeStruct`s."""
    result = {}
    for path, leaf in errors.flatten(params).items():
        empty = np.empty(leaf.shape[1:] if stacked(path) else leaf.shape, np.bool_)
        for name in leaf_names(path, leaf):
            result[name] = _to_torch(path, empty).shape
    return result


def from_torch(params: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """A tree shaped like `params`, its leaves taken from PyTorch-named `arrays`.

    A leaf none of whose names is in `arrays` is kept as it is; the caller decides
    whether that is allowed (`graft.onto`).
    """

    def walk(tree, prefix):
        if isinstance(tree, Mapping):
            return {key: walk(value, f"{prefix}{key}.") for key, value in tree.items()}
        path = prefix[:-1]
        layer_names = leaf_names(path, tree)
        if not any(name in arrays for name in layer_names):
            return tree
        layers = [_from_torch(path, np.asarray(arrays[name])) for name in layer_names]
        return np.stack(layers) if stacked(path) else layers[0]

    return walk(params, "")
