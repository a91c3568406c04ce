# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From undecoded picture files to batches: read, decode, crop, ahead of the step.

Threads fill the rows of a batch, for reading and decoding let other threads run. A
training picture reaches the device on a canvas, its crop as a box there, and is resized
by the device; an evaluation picture is resized here, exactly as Pillow does it.
"""

import numpy as np

from g2sd_jax.data import classes, crops, decoder, encoded, failures, pictures, threads
from g2sd_jax.data import dataset as datasets

CHUNK = 8  # Rows a thread fills in one go; short, so that none waits long for another.


def dataset(config, held: encoded.Encoded, split) -> datasets.Dataset:
    """The `Dataset` of a split of picture files.

    Args:
        config: the whole recipe.
        held: the files.
        split: their name in the list of bad examples.
    """
    decoder.check_channels(config.model.channels)
    mapped = classes.mapped(config, held.classes, held.labels, held.origin)
    held = held._replace(classes=mapped.names, labels=mapped.labels)
    if config.data.classes:
        datasets.check_labels(held.labels, config.data.classes, held.origin)
    training, evaluating = Training(config), Evaluating(config)
    fill = filling(config, held, split)

    def fetch(indices, epoch=None):
        frames = evaluating if epoch is None else training
        batch = frames.empty(len(indices))

        def place(row, index):
            picture = decoder.opened(held.read(index), config.model.channels)
            frames.place(batch, row, picture, epoch, index)

        used, valid = fill(indices, place, epoch is not None)
        if held.labels is not None:
            batch["label"] = held.labels[used]
        return {**batch, "index": used, "valid": valid}

    def original(index):
        if held.labels is None:
            return {}
        return classes.example(held.labels[index], mapped.among)

    return datasets.Dataset(
        counted(config, held),
        held.classes,
        fetch,
        original,
        held.labels,
        ahead=config.data.prefetch,
        eval_crop=crops.evaluation_share(
            config.data.eval_crop, config.model.image_size
        ),
    )


def counted(config, held: encoded.Encoded) -> int:
    """Examples that `config.data.limit` leaves."""
    limit = config.data.limit
    return held.count if limit is None else min(held.count, limit)


def filling(config, held: encoded.Encoded, split):
    """The loop that fills the rows of a batch, on threads and round what is broken.

    Args:
        config: the whole recipe.
        held: the files; only their names are used here.
        split: their name in the list of bad examples.
    Returns:
        (indices [b], place, replacing) -> (used [b] int32, valid [b]). `place(row,
        index)` fills a row, or raises OSError or `Unreadable`: then the next example
        is tried if `replacing`, else the row is not valid.
    """
    workers, count = threads.workers(config), counted(config, held)
    pool = threads.pool(config)

    def fill(indices, place, replacing):
        used = np.array(indices, np.int32)
        valid = np.ones(len(used), bool)

        def several(rows):
            for row in rows:
                found = one(row, int(used[row]))
                valid[row] = found is not None
                used[row] = used[row] if found is None else found

        def one(row, index):
            """The example that fills the row: the next one for one that is bad."""
            for at in ((index + step) % count for step in range(count)):
                try:
                    place(row, at)
                    return at
                except (OSError, decoder.Unreadable) as error:
                    failures.note(config, split, count, at, held.name(at), error)
                    if not replacing:
                        return None  # Another one's answer must not count twice.
            raise ValueError(f"{held.origin}: none of {count} examples can be read.")

        step = max(1, min(CHUNK, -(-len(used) // workers)))
        parts = [range(len(used))[at : at + step] for at in range(0, len(used), step)]
        for _ in pool.map(several, parts):  # Raises what a thread raised.
            pass
        return used, valid

    return fill


class Training:
    """Random resized crops, drawn from (seed, epoch, index) and nothing else."""

    def __init__(self, config):
        self._config = config
        self._size, self._channels = (
            tuple(config.model.image_size),
            config.model.channels,
        )
        ratio = config.data.canvas
        if ratio and ratio < 1:
            raise ValueError(
                f"config.data.canvas={ratio}: the canvas is at least the model's size, "
                "so 1.0 or more; 0.0 resizes on the host."
            )
        self._canvas = tuple(round(side * max(1, ratio)) for side in self._size)
        self._on_device = bool(ratio)

    def empty(self, count):
        # Zeros, so that equal batches are equal bytes outside the boxes as well; the
        # system hands out zeroed pages, and only touched ones cost anything.
        image = np.zeros((count, *self._canvas, self._channels), np.uint8)
        return {"image": image, "crop": np.zeros((count, 4), np.float32)}

    def place(self, batch, row, picture, epoch, index):
        box = crops.training_box(picture.size, self._config, epoch, index)
        part = None
        if self._on_device:
            part = crops.eighths(box, self._size, self._canvas)
        if part is None or (part < decoder.WHOLE and not picture.scales):
            pixels, box = (
                pictures.resized(*picture.cut(box), self._size),
                (0, 0, *self._size),
            )
        else:
            pixels, box = picture.cut(box, part)
        height, width = pixels.shape[:2]
        batch["image"][row, :height, :width] = pixels
        batch["crop"][row] = box


class Evaluating:
    """Nothing random: the centre, by the rule of `crops.evaluation_box`."""

    def __init__(self, config):
        self._size, self._channels = (
            tuple(config.model.image_size),
            config.model.channels,
        )
        self._share = crops.evaluation_share(config.data.eval_crop, self._size)

    def empty(self, count):
        return {"image": np.zeros((count, *self._size, self._channels), np.uint8)}

    def place(self, batch, row, picture, epoch, index):
        box = crops.evaluation_box(picture.size, self._size, self._share)
        # All of the picture is decoded: pixels outside the box serve the kernel too.
        pixels, _ = picture.cut((0, 0, *picture.size))
        batch["image"][row] = pictures.resized(pixels, box, self._size)
