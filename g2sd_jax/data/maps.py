# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures with a label for every pixel: `config.data.source="maps"`.

ADE20K's official folder, and any other pair of folders (`pairs`). A stored label
becomes one of the model's classes, or 255 where it is ignored, by one table:
`config.data.reduce_zero_label` first, then `config.data.ignore`, which names labels as
they are stored. Training sees random crops (`crops.varied`), evaluation the originals.
"""

import io

import numpy as np
from PIL import Image

from g2sd_jax.data import classes, crops, decoder, failures, geometry, pairs, pipeline
from g2sd_jax.data import dataset as datasets

CHECKED = 64  # Pairs that are opened before a run starts; the others when they come.
FORMATS = ("PNG", "BMP")  # Whatever loses pixels has labels that nobody gave.


def load(config, split) -> datasets.Dataset:
    """One split, decoded as it is needed.

    Batches have `image` [B, H, W, C] and `label_map` [B, H, W] uint8, and `image_size`
    [B, 2]: the height and width of what is at the top left of a crop that is padded.
    An original that cannot be read is {}.
    """
    decoder.check_channels(config.model.channels)
    if config.data.hold_out:
        raise ValueError(
            f"config.data.hold_out={config.data.hold_out}: label maps come in splits "
            "of their own; set it to 0.0."
        )
    pictures, maps = pairs.listed(config, split)
    count = pipeline.counted(config, pictures)
    table, frames = label_table(config), Crops(config)

    def opened(index):
        """(pixels [h, w, C], label map [h, w]) of one pair."""
        picture = decoder.opened(pictures.read(index), config.model.channels)
        try:
            stored = decoded(maps.read(index), maps.name(index))
        except (OSError, decoder.Unreadable) as error:
            raise decoder.Unreadable(f"{maps.name(index)}: {error}") from error
        if stored.shape != tuple(picture.size):
            raise ValueError(
                f"{pictures.name(index)} has {picture.size} pixels (height, width), "
                f"its label map {maps.name(index)} {stored.shape}; they have to agree."
            )
        label_map = table[stored]
        check_labels(stored, label_map, config, maps.name(index))
        return picture.cut((0, 0, *picture.size))[0], label_map

    def original(index):
        try:
            pixels, label_map = opened(index)
        except (OSError, decoder.Unreadable) as error:
            failures.note(config, split, count, index, pictures.name(index), error)
            return {}
        return {"image": pixels, "label_map": label_map}

    fill = pipeline.filling(config, pictures, split)

    def fetch(indices, epoch=None):
        batch = frames.empty(len(indices))

        def place(row, index):
            frames.place(batch, row, *opened(index), epoch, index)

        used, valid = fill(indices, place, epoch is not None)
        return {**batch, "index": used, "valid": valid}

    for index in (
        np.unique(np.linspace(0, count - 1, CHECKED).astype(int)) if count else ()
    ):
        original(int(index))
    names = class_names(config)
    return datasets.Dataset(count, names, fetch, original, ahead=config.data.prefetch)


def class_names(config) -> tuple[str, ...]:
    """The lines of `config.data.class_list`, in the order of the labels."""
    if not config.data.class_list:
        return ()
    listed = classes.read(config.data.class_list, config.data.classes)
    if not classes.each_once(listed, config.data.classes):
        raise ValueError(
            f"config.data.class_list={config.data.class_list!r}: label maps need one "
            "name for each class, in the order of the labels."
        )
    return tuple(sorted(listed, key=listed.get))


def label_table(config) -> np.ndarray:
    """[256] uint8: what each stored label becomes."""
    table = np.arange(256, dtype=np.uint8)
    if config.data.reduce_zero_label:
        table = geometry.reduce_zero(table)
    wrong = [label for label in config.data.ignore if not 0 <= label <= 255]
    if wrong:
        raise ValueError(
            f"config.data.ignore={tuple(config.data.ignore)}: a label map stores "
            f"0..255, never {wrong[0]}."
        )
    table[list(config.data.ignore)] = geometry.IGNORED
    return table


def check_labels(stored, label_map, config, name):
    known = label_map[label_map != geometry.IGNORED]
    wrong = known[known >= config.data.classes]
    if not len(wrong):
        return
    most = int(stored[label_map == wrong.max()][0])
    raise ValueError(
        f"{name} holds the label {most}, but config.data.classes={config.data.classes} "
        f"(config.data.reduce_zero_label={config.data.reduce_zero_label}, config.data."
        f"ignore={tuple(config.data.ignore)}). Correct config.data.classes, or add "
        f"{most} to config.data.ignore if it is no class."
    )


def decoded(data: bytes, name: str) -> np.ndarray:
    """[h, w] uint8 as it is stored: grey levels, or the indices of a palette.

    Raises `Unreadable` for a broken file, and ValueError for one that cannot be a map
    of labels, as then others will not be either.
    """
    if not data:
        raise decoder.Unreadable("the file is empty")
    if data[:2] == b"\xff\xd8":
        raise ValueError(
            f"{name} is a JPEG, which changes labels; store label maps as PNG."
        )

    def load():
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.mode, np.asarray(image)

    mode, stored = decoder.guarded(load)
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise ValueError(
            f"{name} is stored as {mode}, as colours: a label map has one channel, "
            "grey or with a palette. Write the number of each colour's class instead."
        )
    if stored.max(initial=0) > 255:
        raise ValueError(
            f"{name} holds the label {stored.max()}; label maps have labels below 256."
        )
    stored = stored.astype(np.uint8)
    if mode == "L" and data[:4] == b"\x89PNG":  # Few bits: Pillow spreads them to 255.
        stored //= 255 // (2 ** min(data[24], 8) - 1)
    return stored


class Crops:
    """Random scale, then a crop of several classes; without an epoch the centre."""

    def __init__(self, config):
        self._config = config
        self._size, self._channels = (
            tuple(config.model.image_size),
            config.model.channels,
        )
        crops.check_scaled(config.augment)

    def empty(self, count):
        return {
            "image": np.zeros((count, *self._size, self._channels), np.uint8),
            "label_map": np.full((count, *self._size), geometry.IGNORED, np.uint8),
            "image_size": np.zeros((count, 2), np.int32),
        }

    def place(self, batch, row, pixels, label_map, epoch, index):
        augment = self._config.augment
        drawn = None
        if epoch is not None:
            drawn = crops.scaled_draws(self._config, epoch, index)
        size, ratio = label_map.shape, 1.0 if drawn is None else drawn.ratio
        box = geometry.scaled_box(augment.fit, ratio)
        size = geometry.fit_size(size, box)
        label_map = geometry.resize_labels(label_map, size)
        room = crops.room(size, self._size)
        if drawn is None:
            y, x = room // 2
        else:
            offsets = (drawn.places * (room + 1)).astype(int)
            chosen = crops.varied(label_map, self._size, offsets, augment.crop_share)
            y, x = offsets[chosen]
        label_map = label_map[y : y + self._size[0], x : x + self._size[1]]
        height, width = label_map.shape
        # Only the crop is resized: the rest costs most of the time, and nobody sees it.
        part = geometry.resize_image(pixels, size, (y, x, height, width))
        batch["image"][row, :height, :width] = part
        batch["label_map"][row, :height, :width] = label_map
        batch["image_size"][row] = height, width


frames = Crops  # What a training batch is laid out in.
