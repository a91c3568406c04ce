# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""COCO jsons and their pictures, and the recipe that reads them."""

import gzip
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import files
from g2sd_jax import recipes
from g2sd_jax.data.coco import run_lengths

SIZE = (48, 60)  # (height, width) of the first picture; others are a little higher.
CATEGORIES = ((3, "cat"), (7, "dog"), (90, "owl"))


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon as the json has it."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def bitmap(box: Sequence[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """[*size] uint8, ones in x, y, width, height."""
    x, y, width, height = box
    mask = np.zeros(size, np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def as_json(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    """A mask in run lengths, as a json can hold it."""
    encoded = run_lengths.encode(mask)
    counts = encoded["counts"].decode()
    if not compressed:
        counts = run_lengths.parse(counts)
    return {"size": list(mask.shape), "counts": counts}


def annotation(number: int, image_id: int, box: Sequence[float], **keys: Any) -> dict:
    """An object with one rectangular polygon, of the first category."""
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CATEGORIES[0][0],
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [rectangle(*box)],
    } | keys


def content(count: int = 5, folder: str = "") -> dict[str, list]:
    """The lists of a json: polygons, both forms of run lengths, crowds, and nothing.

    Picture i, of id 10 * (count - i), has i % 4 objects; the ids descend, so that
    sorting them changes the order.
    """
    images, annotations = [], []
    for i in range(count):
        size = (SIZE[0] + 4 * i, SIZE[1])
        image_id = 10 * (count - i)
        images.append(
            dict(id=image_id, file_name=f"{folder}p{i}.jpg", height=size[0], width=60)
        )
        for k in range(i % 4):
            number = len(annotations) + 1
            box = (3 + 10 * k, 4 + 5 * k, 12, 16)
            keys = dict(category_id=CATEGORIES[k % 3][0])
            if k:
                keys["segmentation"] = as_json(bitmap(box, size), compressed=k == 1)
            annotations.append(annotation(number, image_id, box, **keys))
    for number, i in ((998, 3), (999, 0)):
        size = (images[i]["height"], images[i]["width"])
        crowd = as_json(bitmap((0, 0, 30, 30), size), compressed=False)
        keys = dict(iscrowd=1, segmentation=crowd, area=900)
        image_id = images[i]["id"]
        annotations.append(annotation(number, image_id, (0, 0, 30, 30), **keys))
    categories = [dict(id=key, name=name) for key, name in CATEGORIES]
    return dict(images=images, annotations=annotations, categories=categories[::-1])


def pictures(lists: Mapping[str, Sequence[Mapping]]) -> dict[str, bytes]:
    """{path: bytes} of the pictures that a json names."""
    return {
        image["file_name"]: files.encode(
            files.pixels((image["height"], image["width"]), image["id"]), quality=95
        )
        for image in lists["images"]
    }


def write(
    root: pathlib.Path,
    lists: Mapping[str, Sequence[Mapping]] | None = None,
    split: str = "train",
    packed: bool = False,
) -> pathlib.Path:
    """Writes a split beneath a folder: SPLIT.json or SPLIT.json.gz, and its pictures.

    Args:
        root: the folder.
        lists: of the json; None for `content()`.
        split: its name.
        packed: the json by gzip, and the pictures in a tar, in a folder of the split.
    """
    lists = content() if lists is None else lists
    root.mkdir(parents=True, exist_ok=True)
    data = json.dumps(lists).encode()
    if packed:
        (root / f"{split}.json.gz").write_bytes(gzip.compress(data))
        files.pack(root / f"{split}.tar", pictures(lists), prefix=f"{split}/")
    else:
        (root / f"{split}.json").write_bytes(data)
        files.write(root / split, pictures(lists))
    return root


def recipe(path: str | pathlib.Path, packed: bool = False, **keys: Any) -> ConfigDict:
    """A recipe that reads such splits on a canvas of 64 x 64, in batches of 2.

    Args:
        path: of the folder.
        packed: as in `write`.
        **keys: changes, of `config.data` where a key has no dot.
    """
    config = recipes.load("finetune:task=detection")
    config.data.annotations = "{split}.json" + ".gz" * packed
    config.data.max_boxes, config.data.mask_size = 3, 28
    config.augment.scale = (0.5, 1.5)
    changes = dict(
        source="coco",
        path=str(path),
        images="{split}.tar" if packed else "{split}",
        train_split="train",
        eval_split="train",
        classes=3,
        train_examples=3,
        workers=2,
    )
    for key, value in (changes | keys).items():
        group, _, leaf = key.rpartition(".")
        (config[group] if group else config.data)[leaf] = value
    config.batch = 2
    config.model.image_size = (64, 64)
    return config
