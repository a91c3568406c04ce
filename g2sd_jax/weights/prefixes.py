# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Prefixes that wrappers of a model put before the names of its state dict."""

import itertools
import re
from collections.abc import Iterable, Mapping

import numpy as np

from g2sd_jax.weights import transformers_names

# Components that only a wrapper writes, wherever they stand in a name.
WRAPPERS = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_forward_module)\."
)
COUNTER = "n_averaged"  # What torch's AveragedModel counts beside its model.
ANCHORS = ("patch_embed.proj.weight", transformers_names.UNIQUE)
# Prefixes that a network itself writes: transformers' encoders, a backbone.
ENCODERS = ("vit.", "deit.")
BACKBONE = "backbone."
# Names that only a segmentor's backbone has.
OF_SEGMENTORS = re.compile(
    r"backbone\.(fpn\d|.*\.(relative_position_bias_table|gamma_[12])$)"
)


def strip(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Takes off the prefix of all names, and the components that wrappers insert.

    Args:
        arrays: by name.
    Returns:
        The arrays by their shorter names, and what was taken off.
    """
    short_names = {name: WRAPPERS.sub("", name) for name in arrays}
    removed = sorted({match[0] for name in arrays for match in WRAPPERS.finditer(name)})
    prefix = _common(short_names.values())
    if prefix:
        removed.append(prefix)
        short_names = {
            name: short.removeprefix(prefix)
            for name, short in short_names.items()
            if short != COUNTER
        }
    if not removed or len(set(short_names.values())) < len(short_names):
        return dict(arrays), []
    return {short: arrays[name] for name, short in short_names.items()}, removed


def _common(names: Iterable[str]) -> str:
    """The prefix, up to a dot, that all names share and no network here has."""
    names = [name for name in names if name != COUNTER]
    anchors = [prefix for prefix in map(anchored, names) if prefix is not None]
    columns = zip(*(name.split(".")[:-1] for name in [*names, *anchors]), strict=False)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    shared = "".join(f"{column[0]}." for column in same)
    if not anchors:  # A linear probe, or nothing known here.
        return re.match(r"(module\.)*", shared)[0]
    if shared.endswith(BACKBONE):
        outside = shared.removesuffix(BACKBONE)
        if any(OF_SEGMENTORS.match(name.removeprefix(outside)) for name in names):
            return outside
    return "" if shared in ENCODERS else shared


def anchored(name: str) -> str | None:
    """The prefix of a patch embedding's weight; None of any other name."""
    for anchor in ANCHORS:
        if name == anchor or name.endswith(f".{anchor}"):
            return name.removesuffix(anchor)
    return None
