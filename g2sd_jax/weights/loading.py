# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from anywhere, under their PyTorch names."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from g2sd_jax import checkpoint, core
from g2sd_jax.models import vit
from g2sd_jax.weights import importers, torch_names

CONV_SEG = "decode_head.conv_seg"


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file or a run holds, and what it says of itself."""

    source: str
    arrays: Mapping[str, np.ndarray]
    describe: Mapping

    @property
    def has_decoder(self) -> bool:
        return any(name.startswith("decoder_blocks.") for name in self.arrays)

    @property
    def size(self) -> str | None:
        """Its row of `models.vit.SIZES`, if it has one."""
        return named_size({name: a.shape for name, a in self.arrays.items()})

    def summary(self) -> str:
        """A few words on what the file holds."""
        arrays = {n.removeprefix("backbone."): a for n, a in self.arrays.items()}
        width, depth = encoder({name: a.shape for name, a in arrays.items()})
        parts = [f"an encoder of {depth} blocks, width {width or '?'}"]
        parts += ["a decoder"] if self.has_decoder else ["no decoder"]
        for head, kind in (("head", "a head"), (CONV_SEG, "a segmentation head")):
            if f"{head}.weight" in arrays:
                parts.append(f"{kind} of {len(arrays[f'{head}.weight'])} classes")
        kernel = arrays.get("patch_embed.proj.weight")
        if kernel is not None:
            parts.append(
                f"patches of {kernel.shape[2]} pixels, {kernel.shape[1]} channels"
            )
        return ", ".join(parts)


def encoder(shapes):
    """(width, depth) of an encoder of these shapes."""
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in shapes]
    depth = 1 + max((int(found[1]) for found in blocks if found), default=-1)
    return (shapes.get("cls_token") or (0,))[-1], depth


def named_size(shapes):
    shape = encoder(shapes)
    return next((name for name, row in vit.SIZES.items() if row[:2] == shape), None)


def read(path: str, key: str) -> Weights:
    """Weights of a workdir or a file; `key` is the config key to name in errors."""
    if not path:
        raise ValueError(
            f"{key} is empty: name a workdir of an earlier stage or a weight file "
            "(random:SEED gives untrained weights, for smoke runs and measurements)."
        )
    if epath.Path(path).is_file() or importers.is_directory(path):
        arrays, describe = importers.read(path, key)
        return Weights(path, arrays, describe)
    held = checkpoint.read_run(path, key)
    grid = held.describe["grid"] if held.describe.get("kind") == "mae" else None
    return Weights(path, torch_names.to_torch(held.variables, grid), held.describe)


def run_variables(path: str, shapes: Mapping, key: str) -> tuple[dict, dict]:
    """All variables of a run as they are, and its description.

    Args:
        path: a workdir.
        shapes: what the run's stage starts from; the variables must be shaped alike.
        key: the option to name in errors.
    """
    held = checkpoint.read_run(path, key)
    variables, describe = held.variables, held.describe
    mine, theirs = core.flatten(shapes), core.flatten(variables)
    differ = [
        f"{name} is {_shape(theirs, name)}, expected {_shape(mine, name)}"
        for name in sorted(mine.keys() | theirs.keys())
        if _shape(mine, name) != _shape(theirs, name)
    ]
    if differ:
        raise ValueError(
            f"{key}={path!r} does not fit its config ({core.few(differ)}); leave "
            "config.model and config.data.classes as the run had them."
        )
    return variables, describe


def _shape(leaves, name):
    return tuple(leaves[name].shape) if name in leaves else "absent"
