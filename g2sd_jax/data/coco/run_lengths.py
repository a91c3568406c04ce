# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of single instances as run lengths, COCO's form of them, by pycocotools.

A mask in run lengths is `{"size": [height, width], "counts": ...}`: lengths of runs of
zeros and ones by turns, column by column, as a list (uncompressed) or in a string.
"""

import importlib
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from g2sd_jax.data import geometry

RunLengths = Mapping[str, Any]
LEAST_POINTS = 3  # Of a polygon that has an area.
AT_ONCE = 255  # Masks: pycocotools counts those it measures in eight bits.
CONTINUES, NEGATIVE, BITS = 0x20, 0x10, 5  # Of a character of a compressed string.


def library() -> types.ModuleType:
    """`pycocotools.mask`, or a sentence that says how to install it."""
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError:
        raise ValueError(
            "masks of instances take pycocotools: pip install 'g2sd_jax[detection]'."
        ) from None


def encode(mask: np.ndarray) -> RunLengths:
    """Compresses a mask [H, W] of zeros and ones."""
    return library().encode(np.asfortranarray(mask, np.uint8))


def decode(run_lengths: RunLengths) -> np.ndarray:
    """[H, W] uint8 of zeros and ones from compressed run lengths.

    Not by pycocotools, whose arrays NumPy 2 warns of.
    """
    height, width = run_lengths["size"]
    lengths = parse(run_lengths["counts"])
    ones = np.arange(len(lengths), dtype=np.uint8) & 1
    return np.repeat(ones, lengths).reshape(width, height).T


def compress(run_lengths: RunLengths) -> RunLengths:
    """Compresses run lengths that may be a list, or a string already.

    Raises:
        ValueError: they do not fill `size` exactly.
    """
    size, counts = list(run_lengths["size"]), run_lengths["counts"]
    lengths = read(run_lengths)
    if isinstance(counts, str | bytes):
        counts = counts.encode() if isinstance(counts, str) else counts
        return {"size": size, "counts": counts}
    return library().frPyObjects({"size": size, "counts": lengths}, *size)


def read(run_lengths: RunLengths) -> list[int]:
    """The lengths of all runs, zeros first, by turns.

    Raises:
        ValueError: they do not fill `size` exactly. pycocotools itself leaves what they
            do not fill to chance.
    """
    size, counts = run_lengths["size"], run_lengths["counts"]
    lengths = parse(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(lengths, list) or any(type(each) is not int for each in lengths):
        raise ValueError("their counts are no whole numbers")
    if min(lengths, default=0) < 0 or sum(lengths) != math.prod(size):
        raise ValueError(f"they cover {sum(lengths)} of {size[0]} x {size[1]} pixels")
    return lengths


def parse(counts: str | bytes) -> list[int]:
    """The lengths in a compressed string.

    A character holds five bits of a number, the lowest first, and whether more follow;
    from the fourth on, a number is the difference from the one two before it. Most
    strings are too short for NumPy to be faster.
    """
    lengths: list[int] = []
    number = bits = 0
    for code in counts.encode() if isinstance(counts, str) else counts:
        code -= 48
        number |= (code & 0x1F) << bits
        bits += BITS
        if code & CONTINUES:
            continue
        if code & NEGATIVE:
            number -= 1 << bits
        if len(lengths) > 2:
            number += lengths[-2]
        lengths.append(number)
        number = bits = 0
    return lengths


def area(masks: Sequence[RunLengths]) -> np.ndarray:
    """[n] pixels of each mask."""
    parts = [np.zeros(0)]
    for first in range(0, len(masks), AT_ONCE):
        some = list(masks[first : first + AT_ONCE])
        parts.append(np.asarray(library().area(some), np.float64).reshape(-1))
    return np.concatenate(parts)


def boxes(masks: Sequence[RunLengths]) -> np.ndarray:
    """[n, 4] x y width height of the tight box around each mask, whole pixels."""
    return np.asarray(library().toBbox(list(masks)), np.float64).reshape(-1, 4)


def from_polygons(polygons: Sequence[np.ndarray], size: geometry.Size) -> RunLengths:
    """Rasterises the union of polygons with COCO's rule.

    Args:
        polygons: each [k, 2] x, y in pixels, k at least 3.
        size: (height, width) of the mask.
    """
    coordinates = [polygon.reshape(-1).tolist() for polygon in polygons]
    return library().merge(library().frPyObjects(coordinates, *size))
