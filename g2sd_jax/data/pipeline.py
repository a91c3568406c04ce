# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From undecoded picture files to batches: read, decode, crop, ahead of the step.

Threads fill the rows of a batch, for reading and decoding let other threads run. A
training picture reaches the device on a canvas, its crop as a box there, and is resized
by the device; an evaluation picture is resized here, exactly as by Pillow.
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import classes, crops, decoder, encoded, failures, pictures, threads
from g2sd_jax.data import dataset as datasets

CHUNK = 8  # Rows a thread fills in one go; short, so that none waits long for another.


# (indices [b], place, replacing) -> (used [b] int32, valid [b] bool)
Fill = Callable[
    [np.ndarray, Callable[[int, int], None], bool], tuple[np.ndarray, np.ndarray]
]


def dataset(config: ConfigDict, files: encoded.Encoded, split: str) -> datasets.Dataset:
    """The `Dataset` of a split of picture files.

    Args:
        config: the recipe.
        files: of the split.
        split: its name in the list of bad examples.
    """
    decoder.check_channels(config.model.channels)
    mapped = classes.map_labels(config, files.classes, files.labels, files.origin)
    files = files._replace(classes=mapped.names, labels=mapped.labels)
    if config.data.classes:
        datasets.check_labels(files.labels, config.data.classes, files.origin)
    training, evaluating = Training(config), Evaluating(config)
    fill = make_fill(config, files, split)

    def fetch(indices, epoch=None):
        frames = evaluating if epoch is None else training
        batch = frames.empty(len(indices))

        def place(row, index):
            picture = decoder.open_picture(files.read(index), config.model.channels)
            frames.place(batch, row, picture, epoch, index)

        used, valid = fill(indices, place, epoch is not None)
        if files.labels is not None:
            batch["label"] = files.labels[used]
        return {**batch, "index": used, "valid": valid}

    def original(index):
        if files.labels is None:
            return {}
        return classes.evaluation_label(files.labels[index], mapped.among)

    return datasets.Dataset(
        example_count(config, files),
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


def make_fill(config: ConfigDict, files: encoded.Encoded, split: str) -> Fill:
    """Makes the function that fills the rows of a batch on threads.

    Args:
        config: the recipe.
        files: of the split; only their names are used here.
        split: its name in the list of bad examples.

    Returns:
        `fill(indices, place, replacing)`, which gives the index of the example in each
        row and whether the row is valid. `place(row, index)` fills a row, or raises
        OSError or `Unreadable`: then the next example is tried if `replacing`, else the
        row is not valid.
    """
    workers, count = threads.workers(config), example_count(config, files)
    pool = threads.pool(config)

    def fill(indices, place, replacing):
        used = np.array(indices, np.int32)
        valid = np.ones(len(used), bool)

        def fill_rows(rows):
            for row in rows:
                placed = fill_row(row, int(used[row]))
                valid[row] = placed is not None
                used[row] = used[row] if placed is None else placed

        def fill_row(row, index):
            """Returns the example in the row: `index`, or the next that is readable."""
            for at in ((index + step) % count for step in range(count)):
                try:
                    place(row, at)
                    return at
                except (OSError, decoder.Unreadable) as error:
                    failures.note(config, split, count, at, files.name(at), error)
                    if not replacing:
                        return None  # Else an example would be evaluated twice.
            raise ValueError(f"{files.origin}: none of {count} examples can be read.")

        step = max(1, min(CHUNK, -(-len(used) // workers)))
        parts = [range(len(used))[at : at + step] for at in range(0, len(used), step)]
        for _ in pool.map(fill_rows, parts):  # Raises what a thread raised.
            pass
        return used, valid

    return fill


class Training:
    """Random resized crops, a function of (seed, epoch, index)."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self._size = tuple(config.model.image_size)
        self._channels = config.model.channels
        ratio = config.data.canvas
        self._canvas = tuple(round(side * max(1, ratio)) for side in self._size)
        self._on_device = bool(ratio)

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Batch of `count` rows: `image` on the canvas, and `crop`, the box in it."""
        # Zeros, so that equal batches are equal bytes outside the boxes as well; the
        # system hands out zeroed pages, and only touched ones cost anything.
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
        box = crops.training_box(picture.size, self._config, epoch, index)
        part = None
        if self._on_device:
            part = crops.decode_eighths(box, self._size, self._canvas)
        if part is None or (part < decoder.WHOLE and not picture.scales):
            pixels = pictures.resize(*picture.cut(box), self._size)
            box = (0, 0, *self._size)
        else:
            pixels, box = picture.cut(box, part)
        height, width = pixels.shape[:2]
        batch["image"][row, :height, :width] = pixels
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
