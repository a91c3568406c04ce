# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of a run or a file, by their PyTorch names, with their description."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from g2sd_jax import checkpoint, errors
from g2sd_jax.models import vit
from g2sd_jax.weights import parts, reading, torch_names


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of a file or a run, and the description that travels with them."""

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

    def classes(self, head: str = parts.CLASS_HEAD) -> int | None:
        """The number of classes of one of `parts.HEADS`, None without that head."""
        weight = self.arrays.get(f"{head}.weight")
        return None if weight is None else len(weight)

    def summary(self) -> str:
        """A phrase for errors: the encoder, and which other parts there are."""
        arrays = {
            name.removeprefix("backbone.").removeprefix("net."): array
            for name, array in self.arrays.items()
        }
        width, depth = encoder_size({name: a.shape for name, a in arrays.items()})
        phrases = [f"an encoder of {depth} blocks, width {width or '?'}"]
        phrases += ["a decoder"] if self.has_decoder else ["no decoder"]
        for head, words in parts.HEADS.items():
            if self.classes(head) is not None:
                phrases.append(f"{words} of {self.classes(head)} classes")
        kernel = arrays.get("patch_embed.proj.weight")
        if kernel is not None:
            phrases.append(
                f"patches of {kernel.shape[2]} pixels, {kernel.shape[1]} channels"
            )
        return ", ".join(phrases)


def encoder_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(width, depth) of the encoder in a state dict of these shapes."""
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in shapes]
    depth = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    width = (shapes.get("cls_token") or (0,))[-1]
    return width or (shapes.get("patch_embed.proj.weight") or (0,))[0], depth


def named_size(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The row of `models.vit.SIZES` with that encoder, if there is one."""
    size = encoder_size(shapes)
    return next((name for name, row in vit.SIZES.items() if row[:2] == size), None)


def read(path: str, key: str, finite: bool = True) -> Weights:
    """Reads the weights of a workdir or a file.

    Args:
        path: of either.
        key: the config key or option that names it, for errors.
        finite: refuse NaN and infinite weights.
    """
    if not path:
        raise ValueError(
            f"{key} is empty: name a workdir of an earlier stage or a weight file "
            "(random:SEED gives untrained weights, for smoke runs and measurements)."
        )
    if epath.Path(path).is_file() or reading.is_directory(path):
        weights = Weights(path, *reading.read(path, key))
    else:
        loaded = checkpoint.read_run(path, key)
        grid = loaded.describe.get("grid")  # JSON has no tuples.
        variant = loaded.describe.get("model", {}).get("variant") or {}
        if variant.get("positions") == "none":
            grid = None  # It has no table, and needs none.
        arrays = torch_names.to_torch(loaded.variables, grid and tuple(grid))
        weights = Weights(path, arrays, loaded.describe)
    if finite:
        _check_finite(weights, key)
    return weights


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the arrays with NaN or infinities."""
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]


def _check_finite(weights: Weights, key: str) -> None:
    names = not_finite(weights.arrays)
    if names:
        raise ValueError(
            f"{key}={weights.source!r} is broken: {errors.shorten_list(names)} "
            f"({len(names)} in all) hold NaN or infinite weights; use a checkpoint "
            "from before its training failed."
        )


def run_variables(path: str, shapes: Mapping, key: str) -> tuple[dict, dict]:
    """Reads all variables of a run as they are, and its description.

    Args:
        path: a workdir.
        shapes: of the variables its stage initialises; those read must have the same.
        key: the option that names it, for errors.
    """
    loaded = checkpoint.read_run(path, key)
    expected, actual = errors.flatten(shapes), errors.flatten(loaded.variables)
    differences = [
        f"{name} is {_shape(actual, name)}, expected {_shape(expected, name)}"
        for name in sorted(expected.keys() | actual.keys())
        if _shape(expected, name) != _shape(actual, name)
    ]
    if differences:
        raise ValueError(
            f"{key}={path!r} does not fit its config "
            f"({errors.shorten_list(differences)}); leave config.model and "
            "config.data.classes as the run had them."
        )
    return loaded.variables, loaded.describe


def _shape(leaves: Mapping, name: str) -> tuple[int, ...] | str:
    return tuple(leaves[name].shape) if name in leaves else "absent"
