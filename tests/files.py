# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Picture files for tests: photographs of nothing, in any format, good and bad."""

import io

import numpy as np
from PIL import Image

from g2sd_jax import recipes


def pixels(size=(40, 60), seed=0, channels=3):
    """[*size, channels] uint8: smooth waves with some grain, as photographs have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / 16
    phases = rng.uniform(0, 6, (channels, 2))
    waves = [np.sin(rows + a) + np.cos(1.7 * columns + b) for a, b in phases]
    grain = rng.normal(0, 6, (*size, channels))
    return np.clip(128 + 45 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


def encode(image, kind="JPEG", **how):
    """The bytes of an array or a Pillow image as a file of some format."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def write(root, contents):
    """Writes {path: bytes} beneath a folder; a path that ends with / is a folder."""
    for name, data in contents.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(data)
    return root


def photographs(per_class=6, size=(40, 60), splits=("train", "val"), classes="ab"):
    """{SPLIT/CLASS/NUMBER.jpg: bytes}, each another picture, sizes varying a little."""
    found = {}
    for split in splits:
        for name in classes:
            for i in range(per_class):
                own = size[0] + 3 * (i % 3), size[1] - 5 * (i % 2)
                data = encode(pixels(own, seed=len(found)), quality=90)
                found[f"{split}/{name}/{i}.jpg"] = data
    return found


def recipe(path, name="pretrain", **data):
    """A shipped recipe on the pictures of a folder or tar, 24 x 16 pixels of them."""
    defaults = dict(source="folder", path=str(path), classes=2, workers=2)
    overrides = {f"data.{key}": value for key, value in {**defaults, **data}.items()}
    return recipes.load(name, {**overrides, "model.image_size": (24, 16), "batch": 4})
