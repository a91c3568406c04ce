# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Invented examples with every task's schema, each a function of its index alone."""

import functools
import zlib

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import geometry

EVALUATED = 40  # Examples of an evaluation split: few, and no multiple of most batches.


def load(config, split) -> datasets.Dataset:
    """Labelled pictures in the shape the recipe asks for; splits do not overlap.

    The training split is as long as `config.data.train_examples` says, others short.
    """
    training = split == config.data.train_split
    return dataset(
        config.data.train_examples if training else EVALUATED,
        config.model.image_size,
        config.model.channels,
        max(1, config.data.classes),
        task_of(config),
        seed=zlib.crc32(split.encode()),
    )


def task_of(config) -> str:
    """Whose schema the recipe's examples have; stages without a task see pictures."""
    return config.task if "task" in config else "classification"


def dataset(
    count,
    image_size,
    channels,
    classes,
    task="classification",
    max_boxes=8,
    mask_size=28,
    seed=0,
) -> datasets.Dataset:
    """Fake examples of one task: classification, segmentation or detection.

    Args:
        count: how many.
        image_size: (height, width) of the batches; dense originals vary around it.
        channels: of the pictures.
        classes: labels are 0..classes-1; at most 255 for segmentation.
        task: whose schema the examples have.
        max_boxes: G, the padded number of boxes; an image has 0 to G real ones.
        mask_size: M, side of an instance mask inside its box.
        seed: another seed, other examples.
    """
    size = tuple(image_size)
    if task == "detection":
        make = functools.partial(detect, max_boxes=max_boxes, mask_size=mask_size)
    else:
        make = {"classification": classify, "segmentation": segment}[task]

    def example(index):
        rng = np.random.Generator(np.random.Philox(key=[seed, int(index)]))
        return make(rng, size, channels, classes)

    def fetch(indices, epoch=None):
        examples = [example(index)[0] for index in indices]
        return {
            name: np.stack([held[name] for held in examples]) for name in examples[0]
        }

    return datasets.Dataset(count, (), fetch, lambda index: example(index)[1])


def classify(rng, size, channels, classes):
    """A grating whose direction and colour tell the label."""
    label = rng.integers(classes)
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    angle = np.pi * label / classes
    across = rows * np.sin(angle) + columns * np.cos(angle)
    wave = np.sin(2 * np.pi * (4 * across + rng.random()))
    image = colours(np.full(size, label), channels) + 50 * wave[..., None]
    held = {"image": noisy(rng, image), "label": np.int32(label)}
    return held, held


def segment(rng, size, channels, classes):
    """Rectangles of one class each, one of them ignored, painted in class colours."""
    full = np.full(original_size(rng, size), rng.integers(classes), np.uint8)
    for value in (*rng.integers(classes, size=4), geometry.IGNORED):
        (x1, y1, x2, y2) = random_box(rng, full.shape).astype(int)
        full[y1:y2, x1:x2] = value
    picture = noisy(rng, colours(full, channels))
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, full.shape, strict=True)
    )
    near = rows[:, None], columns
    held = {"image": picture[near], "label_map": full[near]}
    return held, {"image": picture, "label_map": full}


def detect(rng, size, channels, classes, max_boxes, mask_size):
    """Ellipses and rectangles on a picture that is padded at the bottom or right."""
    own = original_size(rng, size)
    scale = min(size[0] / own[0], size[1] / own[1])
    image_size = np.array([int(side * scale + 0.5) for side in own], np.int32)
    real = rng.integers(max_boxes + 1)
    labels = rng.integers(classes, size=real).astype(np.int32)
    crowd = rng.random(real) < 0.1
    boxes = np.array([random_box(rng, own) for _ in range(real)], np.float32)
    boxes = boxes.reshape(real, 4)

    image = np.full((*size, channels), 128.0)
    masks = np.zeros((max_boxes, mask_size, mask_size), np.uint8)
    for slot, (box, label) in enumerate(zip(boxes * scale, labels, strict=True)):
        image[shape(label, box, size)] = colours(label, channels)
        whole = (0, 0, mask_size, mask_size)
        masks[slot] = shape(label, whole, (mask_size, mask_size))
    image = noisy(rng, image)
    image[image_size[0] :], image[:, image_size[1] :] = 0, 0

    padding = [(0, max_boxes - real)]
    batch = {
        "image": image,
        "boxes": np.pad(boxes * np.float32(scale), [*padding, (0, 0)]),
        "classes": np.pad(labels, padding, constant_values=-1),
        "crowd": np.pad(crowd, padding),
        "masks": masks,
        "image_size": image_size,
    }
    drawn = [shape(label, box, own) for box, label in zip(boxes, labels, strict=True)]
    original = {
        "boxes": boxes,
        "classes": labels,
        "crowd": crowd,
        "masks": np.array(drawn, np.uint8).reshape(real, *own),
        "image_size": np.array(own, np.int32),
    }
    return batch, original


def original_size(rng, size):
    return tuple(int(side * rng.uniform(0.75, 1.5)) for side in size)


def random_box(rng, size):
    """[4] x1 y1 x2 y2, whole pixels, a quarter to a half of the picture wide."""
    height, width = size
    h, w = (max(2, int(side * rng.uniform(0.25, 0.5))) for side in size)
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return np.array([x, y, x + w, y + h], np.float32)


def shape(label, box, size):
    """[height, width] bool: even labels are ellipses, odd ones fill their box."""
    x1, y1, x2, y2 = box
    v = ((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) - 0.5)[:, None]
    u = ((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) - 0.5)[None]
    if label % 2:
        return (abs(u) < 0.5) & (abs(v) < 0.5)
    return u**2 + v**2 < 0.25


def colours(labels, channels):
    """[..., channels] in 64..191, fixed for each label."""
    primes = np.array([37, 59, 83, 101, 13, 29, 71, 97])
    factors = np.resize(primes, channels)
    return 64.0 + (np.asarray(labels, np.int64)[..., None] + 1) * factors % 128


def noisy(rng, image):
    noise = rng.integers(-12, 13, size=image.shape, dtype=np.int16)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
