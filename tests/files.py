# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Picture files for tests: photographs of nothing, in any format, good and bad."""

import io
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from g2sd_jax import recipes


def pixels(
    size: tuple[int, int] = (40, 60), seed: int = 0, channels: int = 3
) -> np.ndarray:
    """[*size, channels] uint8: smooth waves with some grain, as photographs have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / 16
    phases = rng.uniform(0, 6, (channels, 2))
    waves = [np.sin(rows + a) + np.cos(1.7 * columns + b) for a, b in phases]
    grain = rng.normal(0, 6, (*size, channels))
    return np.clip(128 + 45 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


def encode(
    image: np.ndarray | Image.Image, kind: str = "JPEG", **options: Any
) -> bytes:
    """Encodes an array or a Pillow image as a file of some format."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(root: pathlib.Path, contents: Mapping[str, bytes]) -> pathlib.Path:
    """Writes {path: bytes} beneath a folder; a path that ends with / is a folder."""
    for name, data in contents.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(data)
    return root


def photographs(
    per_class: int = 6,
    size: tuple[int, int] = (40, 60),
    splits: Sequence[str] = ("train", "val"),
    classes: Sequence[str] = "ab",
) -> dict[str, bytes]:
    """{SPLIT/CLASS/NUMBER.jpg: bytes} of different pictures, their sizes varying."""
    contents = {}
    for split in splits:
        for name in classes:
            for i in range(per_class):
                varied = size[0] + 3 * (i % 3), size[1] - 5 * (i % 2)
                data = encode(pixels(varied, seed=len(contents)), quality=90)
                contents[f"{split}/{name}/{i}.jpg"] = data
    return contents


def recipe(path: str | pathlib.Path, name: str = "pretrain", **data: Any) -> ConfigDict:
    """A shipped recipe that reads a folder or tar in 24 x 16 pixels, in batches of 4.

    Args:
        path: of the folder or tar.
        name: of the recipe.
        **data: changes of `config.data`.
    """
    defaults = dict(source="folder", path=str(path), classes=2, workers=2)
    overrides = {f"data.{key}": value for key, value in {**defaults, **data}.items()}
    return recipes.load(name, {**overrides, "model.image_size": (24, 16), "batch": 4})


def pack(
    path: pathlib.Path,
    contents: Mapping[str, bytes],
    prefix: str = "./",
    mode: str = "w",
) -> pathlib.Path:
    """Writes {path: bytes} as a tar; a path that ends with / is a folder."""
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(data))
    return path
