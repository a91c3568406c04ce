# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From undecoded picture files to batches: read, decode, crop, ahead of the step.

A training picture reaches the device on a canvas, its crop as a box there, and is
resized by the device; an evaluation picture is resized here, exactly as by Pillow.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import classes, crops, decoder, encoded, filling, reading, walk
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data.memory import pictures
from g2sd_jax.data.processes import shared_batches


def dataset(config: ConfigDict, files: encoded.Encoded, split: str) -> datasets.Dataset:
    """The `Dataset` of a split of picture files.

    Args:
        config: the recipe.
        files: of the split.
        split: its name in the list of bad examples.
    """
    mapped = classes.map_labels(config, files.classes, files.labels, files.origin)
    files = files._replace(classes=mapped.names, labels=mapped.labels)
    if config.data.classes:
        datasets.check_labels(files.labels, config.data.classes, files.origin)
    count = example_count(config, files)
    filler = filling.Filler(config, split, count, examples(config, files.reader))
    candidates = filling.Candidates(
        count, files.places.__getitem__, files.name, files.origin
    )

    def fetch(indices, epoch=None):
        batch, used, valid = filler.fill(indices, epoch, candidates)
        if files.labels is not None:
            batch = {**batch, "label": files.labels[used]}
        return {**batch, "index": used, "valid": valid}

    def original(index):
        if files.labels is None:
            return {}
        return classes.evaluation_label(files.labels[index], mapped.among)

    return datasets.Dataset(
        count,
        files.classes,
        fetch,
        original,
        files.labels,
        ahead=config.data.prefetch,
        eval_crop=crops.evaluation_share(
            config.data.eval_crop, config.model.image_size
        ),
        notes=files.notes,
    )


def example_count(config: ConfigDict, files: encoded.Encoded) -> int:
    """How many examples `config.data.limit` leaves."""
    limit = config.data.limit
    return files.count if limit is None else min(files.count, limit)


class Pictures(NamedTuple):
    """Reads pictures, for training or evaluation: the `filling.Examples` of files.

    An item is the place of a picture.
    """

    reader: reading.Reader
    training: "Training"
    evaluating: "Evaluating"
    channels: int

    def empty(self, count: int, training: bool) -> dict[str, np.ndarray]:
        """Batch of `count` rows that are all padding."""
        return (self.training if training else self.evaluating).empty(count)

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        item: walk.Place,
        epoch: int | None,
        index: int,
    ) -> None:
        """Fills a row with a picture, cropped for an epoch or for evaluation."""
        picture = decoder.open_picture(self.reader.read(item), self.channels)
        frames = self.evaluating if epoch is None else self.training
        frames.place(batch, row, picture, epoch, index)


def examples(config: ConfigDict, reader: reading.Reader) -> Pictures:
    """The `Pictures` of a recipe, whose number of channels is checked."""
    decoder.check_channels(config.model.channels)
    return Pictures(reader, Training(config), Evaluating(config), config.model.channels)


class Training:
    """Random resized crops, a function of (seed, epoch, index)."""

    def __init__(self, config: ConfigDict):
        self._crop = crops.rule(config)
        self._size = tuple(config.model.image_size)
        self._channels = config.model.channels
        ratio = config.data.canvas
        self._canvas = tuple(round(side * max(1, ratio)) for side in self._size)
        self._on_device = bool(ratio)

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Batch of `count` rows: `image` on the canvas, and `crop`, the box in it."""
        # Zeros, so that equal batches are equal bytes outside the boxes as well.
        image = np.zeros((count, *self._canvas, self._channels), np.uint8)
        return {"image": image, "crop": np.zeros((count, 4), np.float32)}

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        picture: decoder.Picture,
        epoch: int,
        index: int,
    ) -> None:
        """Decodes a picture into a row of a batch, cropped for this epoch."""
        box = crops.training_box(picture.size, self._crop, epoch, index)
        part = None
        if self._on_device:
            part = crops.decode_eighths(box, self._size, self._canvas)
        if part is None or (part < decoder.WHOLE and not picture.scales):
            pixels = pictures.resize(*picture.cut(box), self._size)
            box = (0, 0, *self._size)
        else:
            pixels, box = picture.cut(box, part)
        shared_batches.paste(batch, row, pixels)
        batch["crop"][row] = box


class Evaluating:
    """Centre crops, by `crops.evaluation_box`."""

    def __init__(self, config: ConfigDict):
        self._size = tuple(config.model.image_size)
        self._channels = config.model.channels
        self._share = crops.evaluation_share(config.data.eval_crop, self._size)

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Batch of `count` rows: `image` at the model's size."""
        return {"image": np.zeros((count, *self._size, self._channels), np.uint8)}

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        picture: decoder.Picture,
        epoch: int | None,
        index: int,
    ) -> None:
        """Decodes a picture into a row of a batch; `epoch` and `index` are not used."""
        box = crops.evaluation_box(picture.size, self._size, self._share)
        # All of the picture is decoded: pixels outside the box serve the kernel too.
        pixels, _ = picture.cut((0, 0, *picture.size))
        batch["image"][row] = pictures.resize(pixels, box, self._size)
