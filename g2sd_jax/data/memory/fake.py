# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Invented examples with whatever keys are read, each a function of its index alone."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import label_values
from g2sd_jax.data import dataset as datasets

EVALUATED = 40  # Examples of an evaluation split: few, and no multiple of most batches.
MOST_OBJECTS = 8  # In a picture, however many boxes a batch has room for.
LAYOUT = ("max_boxes", "mask_size")  # Keys of `config.data` that size a batch.
EXAMPLES, CLASSES = 256, 10  # Where the recipe does not say how many to invent.
Example = dict[str, Any]


def load(config: ConfigDict, split: str, reads: Sequence[str] = ()) -> datasets.Dataset:
    """Examples in the shape the recipe asks for; splits do not overlap.

    The training split is as long as `config.data.train_examples` says, others short.
    """
    training = split == config.data.train_split
    return dataset(
        config.data.train_examples if training else EVALUATED,
        config.model.image_size,
        config.model.channels,
        max(1, config.data.classes),
        reads,
        seed=zlib.crc32(split.encode()),
        layout=box_layout(config),
    )


def box_layout(config: ConfigDict) -> dict[str, int]:
    """The sizes of a batch with objects, as the recipe has them; {} of one without."""
    return {key: config.data[key] for key in LAYOUT if key in config.data}


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of examples and of classes that a recipe leaves open."""
    return (EXAMPLES if split == config.data.train_split else EVALUATED), CLASSES


def dataset(
    count: int,
    image_size: Sequence[int],
    channels: int,
    classes: int,
    reads: Sequence[str] = (),
    seed: int = 0,
    layout: Mapping[str, int] | None = None,
) -> datasets.Dataset:
    """Fake examples: pictures, and the keys that are read, of `MAKERS`.

    Args:
        count: how many.
        image_size: (height, width) of the batches; dense originals vary around it.
        channels: of the pictures.
        classes: labels are 0..classes-1; at most 255 in a label map.
        reads: batch keys beside `image`; () are pictures with a label, as most sets.
        seed: another seed, other examples.
        layout: of examples with objects, arguments of `detect`.
    """
    size = tuple(image_size)
    makers = dict(MAKERS)
    if layout:
        makers |= dict.fromkeys(OF_OBJECTS, functools.partial(detect, **layout))

    def example(index: int) -> tuple[Example, Example]:
        batch, original = {}, {}
        for key in reads or ("label",):
            if key in batch:  # One maker may make several keys.
                continue
            rng = np.random.Generator(np.random.Philox(key=[seed, int(index)]))
            row, full = makers[key](rng, size, channels, classes)
            # Of several makers the first one's picture is shown.
            batch, original = {**row, **batch}, {**full, **original}
        return batch, original

    def fetch(indices, epoch=None):
        rows = [example(index)[0] for index in indices]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return datasets.Dataset(count, (), fetch, lambda index: example(index)[1])


def classify(
    rng: np.random.Generator, size: tuple[int, int], channels: int, classes: int
) -> tuple[Example, Example]:
    """A grating whose direction and colour follow from the label."""
    label = rng.integers(classes)
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    angle = np.pi * label / classes
    across = rows * np.sin(angle) + columns * np.cos(angle)
    wave = np.sin(2 * np.pi * (4 * across + rng.random()))
    image = colours(np.full(size, label), channels) + 50 * wave[..., None]
    example = {"image": noisy(rng, image), "label": np.int32(label)}
    return example, example


def segment(
    rng: np.random.Generator, size: tuple[int, int], channels: int, classes: int
) -> tuple[Example, Example]:
    """Rectangles of one class each, one of them ignored, painted in class colours."""
    full = np.full(original_size(rng, size), rng.integers(classes), np.uint8)
    for value in (*rng.integers(classes, size=4), label_values.IGNORED):
        (x1, y1, x2, y2) = random_box(rng, full.shape).astype(int)
        full[y1:y2, x1:x2] = value
    picture = noisy(rng, colours(full, channels))
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, full.shape, strict=True)
    )
    near = rows[:, None], columns
    batch = {"image": picture[near], "label_map": full[near]}
    return batch, {"image": picture, "label_map": full}


def detect(
    rng: np.random.Generator,
    size: tuple[int, int],
    channels: int,
    classes: int,
    max_boxes: int = 8,
    mask_size: int = 28,
) -> tuple[Example, Example]:
    """Ellipses and rectangles on a picture that is padded at the bottom or right.

    Args:
        rng: of this example.
        size: (height, width) of the padded picture.
        channels: of the picture.
        classes: labels are 0..classes-1.
        max_boxes: G, the padded number of boxes; an image has 0 to `MOST_OBJECTS`.
        mask_size: M, side of an instance mask inside its frame, which is its box.
    """
    full_size = original_size(rng, size)
    scale = min(size[0] / full_size[0], size[1] / full_size[1])
    shown = tuple(int(side * scale + 0.5) for side in full_size)
    real = int(rng.integers(min(max_boxes, MOST_OBJECTS) + 1))
    labels = rng.integers(classes, size=real).astype(np.int32)
    crowd = rng.random(real) < 0.1
    boxes = np.array([random_box(rng, full_size) for _ in range(real)], np.float32)
    boxes = boxes.reshape(real, 4)

    image = np.full((*size, channels), 128.0)
    for box, label in zip(boxes * scale, labels, strict=True):
        image[shape(label, box, size)] = colours(label, channels)
    image = noisy(rng, image)
    image[shown[0] :], image[:, shown[1] :] = 0, 0

    batch = {
        "image": image,
        "boxes": np.zeros((max_boxes, 4), np.float32),
        "labels": np.zeros(max_boxes, np.int32),
        "valid_boxes": np.arange(max_boxes) < (~crowd).sum(),
        "masks": np.zeros((max_boxes, mask_size, mask_size), np.uint8),
        "frames": np.tile(np.array([0, 0, 1, 1], np.float32), (max_boxes, 1)),
        "size": np.array(shown, np.int32),
    }
    for slot, row in enumerate(np.flatnonzero(~crowd)):
        batch["boxes"][slot] = batch["frames"][slot] = boxes[row] * scale
        batch["labels"][slot] = labels[row]
        frame = (0, 0, mask_size, mask_size)
        batch["masks"][slot] = shape(labels[row], frame, (mask_size, mask_size))
    masks = [
        shape(label, box, full_size) for box, label in zip(boxes, labels, strict=True)
    ]
    original = {
        "image_id": int(rng.integers(2**31)),
        "size": full_size,
        "labels": labels,
        "boxes": boxes.astype(np.float64),
        "areas": np.array([mask.sum() for mask in masks], np.float64),
        "crowd": crowd,
        "masks": [mask.astype(np.uint8) for mask in masks],
    }
    return batch, original


# Batch key: what makes an example that has it, (rng, (height, width), channels,
# classes) -> the example as batches hold it, and as evaluators judge it.
MAKERS = {"label": classify, "label_map": segment}
OF_OBJECTS = ("boxes", "labels", "valid_boxes", "masks", "frames", "size")
MAKERS |= dict.fromkeys(OF_OBJECTS, detect)


def original_size(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an original that batches show at another size."""
    return tuple(int(side * rng.uniform(0.75, 1.5)) for side in size)


def random_box(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """[4] x1 y1 x2 y2, whole pixels, a quarter to a half of the picture wide."""
    height, width = size
    h, w = (max(2, int(side * rng.uniform(0.25, 0.5))) for side in size)
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return np.array([x, y, x + w, y + h], np.float32)


def shape(label: int, box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """[height, width] bool: even labels are ellipses, odd ones fill their box."""
    x1, y1, x2, y2 = box
    v = ((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) - 0.5)[:, None]
    u = ((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) - 0.5)[None]
    if label % 2:
        return (abs(u) < 0.5) & (abs(v) < 0.5)
    return u**2 + v**2 < 0.25


def colours(labels: np.ndarray, channels: int) -> np.ndarray:
    """[..., channels] in 64..191, fixed for each label."""
    primes = np.array([37, 59, 83, 101, 13, 29, 71, 97])
    factors = np.resize(primes, channels)
    return 64.0 + (np.asarray(labels, np.int64)[..., None] + 1) * factors % 128


def noisy(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """[..., channels] uint8: the levels of an image with a little noise."""
    noise = rng.integers(-12, 13, size=image.shape, dtype=np.int16)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
