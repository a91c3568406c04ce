# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and their label maps in files, and the recipe that reads them."""

import pathlib
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import files
from g2sd_jax import recipes
from g2sd_jax.data import geometry

SIZE = (48, 60)


def labels(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[*size] uint8 in blocks: 0 (no class) and 1 to 4, as in ADE20K's files."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 5, (6, 6)).astype(np.uint8)
    return geometry.resize_labels(coarse, size)


def pair(
    stem: str,
    split: str = "training",
    seed: int = 0,
    size: tuple[int, int] = SIZE,
) -> dict[str, bytes]:
    """{path: bytes} of a picture and its label map."""
    return {
        f"images/{split}/{stem}.jpg": files.encode(files.pixels(size, seed)),
        f"annotations/{split}/{stem}.png": files.encode(labels(seed, size), "PNG"),
    }


def pairs(splits: Sequence[str] = ("training", "validation")) -> dict[str, bytes]:
    """{path: bytes} of five pairs of different sizes in each split."""
    contents = {}
    for split in splits:
        for i in range(5):
            contents |= pair(f"ADE_{i}", split, i, (SIZE[0] + 4 * i, SIZE[1]))
    return contents


def recipe(
    path: str | pathlib.Path, name: str = "finetune:task=segmentation", **keys: Any
) -> ConfigDict:
    """A shipped recipe that reads such files in 32 x 32 pixels, in batches of 2.

    Args:
        path: of the folder.
        name: of the recipe.
        **keys: changes, of `config.data` where a key has no dot.
    """
    changes = dict(path=str(path), classes=4, train_examples=5, workers=2) | keys
    changes = {
        key if "." in key else f"data.{key}": value for key, value in changes.items()
    }
    small = {"model.image_size": (32, 32), "augment.fit": (48, 192), "batch": 2}
    return recipes.load(name, small | changes)


def four_bits(label_map: np.ndarray) -> bytes:
    """A grey PNG of 4 bits, which Pillow does not write; the width has to be even."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = label_map.shape
    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    packed = label_map[:, ::2] << 4 | label_map[:, 1::2]
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
