# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures with a label for every pixel: `config.data.source="maps"`.

ADE20K's official folder, and any other pair of folders (`pairs`). A stored label
becomes one of the model's classes, or 255 where it is ignored, by one table:
`config.data.reduce_zero_label` first, then `config.data.ignore`, which names labels as
they are stored. Training sees random crops (`crops.first_varied_crop`), evaluation the
originals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors, label_values
from g2sd_jax.data import (
    classes,
    crops,
    decoder,
    failures,
    filling,
    geometry,
    pipeline,
    reading,
)
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data.maps import pairs
from g2sd_jax.data.processes import shared_batches, threads

CHECKED = 64  # Pairs that are opened before a run starts; the others when they come.
FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # Lossless: others would change labels.
BITS = 258  # The tag of a TIFF that holds the bits of a pixel.
ORIENTATIONS = ("stored", "shown")


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """One split, decoded on demand.

    Batches have `image` [B, H, W, C] and `label_map` [B, H, W] uint8, and `image_size`
    [B, 2], the height and width of the crop at the top left, beyond which is padding.
    The original of an unreadable example is {}.
    """
    decoder.check_channels(config.model.channels)
    if config.data.classes == 1:
        raise ValueError(
            "config.data.classes=1: one class has nothing to be told from, and its "
            "loss is 0 from the first step. Count the background as a class: "
            "config.data.classes=2 and config.data.reduce_zero_label=False."
        )
    # A run of an older version has no such key; it took maps as they were.
    orientation = config.data.get("map_orientation", "shown")
    errors.one_of("config.data.map_orientation", orientation, ORIENTATIONS)
    pictures, label_maps = pairs.list_pairs(config, split)  # None: there are no maps.
    count = pipeline.example_count(config, pictures)
    pairs_read = Pairs(
        reader=pictures.reader,
        label_reader=None if label_maps is None else label_maps.reader,
        table=label_table(config),
        frames=Crops(config),
        orientation=orientation,
    )
    filler = filling.Filler(config, split, count, pairs_read)
    turned = set()  # Names of pictures that EXIF turns.

    def item(index):
        picture = pictures.places[index], pictures.name(index)
        if label_maps is None:
            return picture, None
        return picture, (label_maps.places[index], label_maps.name(index))

    def original(index):
        try:
            pair = pairs_read.read(item(index))
        except (OSError, decoder.Unreadable) as error:
            failures.note(config, split, count, index, pictures.name(index), error)
            return {}
        if pair.turned:
            turned.add(pictures.name(index))
        return {"image": pair.pixels, "label_map": pair.label_map}

    candidates = filling.Candidates(count, item, pictures.name, pictures.origin)

    def fetch(indices, epoch=None):
        batch, used, valid = filler.fill(indices, epoch, candidates)
        return {**batch, "index": used, "valid": valid}

    checked = np.linspace(0, count - 1, CHECKED if count else 0).astype(int)
    for index in np.unique(checked):
        original(int(index))
    names = class_names(config)
    notes = pictures.notes
    if turned:
        notes += (
            turned_note(sorted(turned), len(np.unique(checked)), split, orientation),
        )
    return datasets.Dataset(
        count, names, fetch, original, ahead=config.data.prefetch, notes=notes
    )


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of pictures of a split, and of classes.

    Those of `config.data.class_list`; without one every label map is read, and classes
    are counted up to the highest label that is not ignored. No classes without maps.
    """
    pictures, label_maps = pairs.list_pairs(config, split)
    if label_maps is None:
        return pictures.count, 0
    if config.data.class_list:
        return label_maps.count, classes.count_outputs(config.data.class_list)
    table = label_table(config)

    def highest(index):
        try:
            stored = decode(label_maps.read(index), label_maps.name(index))
        except (OSError, decoder.Unreadable):
            return -1  # Training lists it as a bad example.
        labels = geometry.replace_labels(stored, table).astype(int)  # For -1 below.
        return int(labels[labels != label_values.IGNORED].max(initial=-1))

    with threads.Pool(len(threads.cores()), "count") as pool:
        return label_maps.count, max(pool.map(highest, range(label_maps.count))) + 1


def turn_hint(picture: decoder.Picture, stored: np.ndarray, orientation: str) -> str:
    """What may be behind a label map [h, w] that lies across its picture."""
    if stored.shape[::-1] != tuple(picture.size):
        return ""
    if not picture.turn[0]:
        return (
            " The map lies across its picture, which has no EXIF orientation: one of "
            "them was turned by another program."
        )
    other = "stored" if orientation == "shown" else "shown"
    drawn = "pixels as they are stored" if other == "stored" else "upright picture"
    return (
        " The picture is turned upright by its EXIF orientation: if maps are drawn "
        f"over the {drawn}, set config.data.map_orientation={other}."
    )


def turned_note(
    names: Sequence[str], looked_at: int, split: str, orientation: str
) -> str:
    """The line about pictures with label maps that their EXIF orientation turns.

    Args:
        names: of those pictures.
        looked_at: how many pictures were opened.
        split: theirs.
        orientation: `config.data.map_orientation`.
    """
    how = {
        "shown": "WARNING: their label maps are taken as drawn over the upright "
        "picture; if they are drawn over the stored pixels, set "
        "config.data.map_orientation=stored",
        "stored": "their label maps are turned with them",
    }
    return (
        f"split {split!r}: EXIF turns {len(names)} of {looked_at} pictures looked at "
        f"({errors.shorten_list(names, most=3)}); {how[orientation]} "
        f"(config.data.map_orientation={orientation})."
    )


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """The lines of `config.data.class_list`, in the order of the labels."""
    if not config.data.class_list:
        return ()
    outputs = config.data.classes
    names = classes.output_names(classes.read(config.data.class_list, outputs), outputs)
    if not names:
        raise ValueError(
            f"config.data.class_list={config.data.class_list!r}: label maps need one "
            "name for each class, in the order of the labels."
        )
    return names


def label_table(config: ConfigDict) -> np.ndarray:
    """[256] uint8: the class, or 255, that each stored label becomes."""
    table = np.arange(256, dtype=np.uint8)
    if config.data.reduce_zero_label:
        table = geometry.reduce_zero(table)
    table[list(config.data.ignore)] = label_values.IGNORED
    return table


def check_labels(
    stored: np.ndarray, label_map: np.ndarray, config: ConfigDict, name: str
) -> None:
    """Refuses a label map with more classes than the model.

    Args:
        stored: [h, w] labels as they are in the file.
        label_map: [h, w] the classes they become.
        config: the recipe.
        name: of the file.
    """
    wrong = label_map >= min(config.data.classes, label_values.IGNORED)
    wrong &= label_map != label_values.IGNORED
    if not wrong.any():
        return
    most = int(stored[label_map == label_map[wrong].max()][0])
    raise ValueError(
        f"{name} holds the label {most}, but config.data.classes={config.data.classes} "
        f"(config.data.reduce_zero_label={config.data.reduce_zero_label}, config.data."
        f"ignore={tuple(config.data.ignore)}). Correct config.data.classes, or add "
        f"{most} to config.data.ignore if it is no class."
    )


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes the stored labels: grey levels, or the indices of a palette.

    Args:
        data: the bytes of the file.
        name: of the file, for errors.

    Returns:
        [h, w] uint8.

    Raises:
        Unreadable: the file is broken.
        ValueError: the file cannot be a label map, as then others will not be either.
    """
    if not data:
        raise decoder.Unreadable("the file is empty")
    if data[:2] == b"\xff\xd8":
        raise ValueError(
            f"{name} is a JPEG, which changes labels; store label maps as PNG."
        )

    def load():
        with decoder.open_image(data, FORMATS) as image:
            bits = 8
            if image.format == "PNG":
                bits = data[24]
            elif image.format == "TIFF":
                bits = image.tag_v2.get(BITS, (8,))[0]
            return image.mode, bits, np.asarray(image)

    mode, bits, stored = decoder.translate_errors(load)
    if mode == "RGB" and (stored == stored[..., :1]).all():
        raise ValueError(
            f"{name} is stored as RGB, as colours, though all three are alike: a label "
            "map has one channel. Save one of them: "
            "Image.open(path).getchannel(0).save(path)."
        )
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise ValueError(
            f"{name} is stored as {mode}, as colours: a label map has one channel, "
            "grey or with a palette. Write the number of each colour's class instead."
        )
    if stored.max(initial=0) > 255:
        raise ValueError(
            f"{name} holds the label {stored.max()}; label maps have labels below 256."
        )
    stored = stored.astype(np.uint8, copy=False)
    if mode == "L" and bits < 8:  # Pillow spreads them to 255.
        stored = stored // (255 // (2**bits - 1))
    return stored


class Pair(NamedTuple):
    """A picture and its label map."""

    pixels: np.ndarray  # [h, w, C] uint8
    label_map: np.ndarray  # [h, w] uint8, classes or 255
    turned: bool  # Whether EXIF turns the picture.


class Pairs(NamedTuple):
    """Reads pictures with their label maps: the `filling.Examples` of this source.

    An item is (place, name) of the picture and of its label map, or None for that.
    """

    reader: reading.Reader
    label_reader: reading.Reader | None
    table: np.ndarray  # Of `label_table`.
    frames: "Crops"
    orientation: str  # `config.data.map_orientation`

    def empty(self, count: int, training: bool) -> dict[str, np.ndarray]:
        """Batch of `count` rows that are all padding, the same for evaluation."""
        return self.frames.empty(count)

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        item: tuple,
        epoch: int | None,
        index: int,
    ) -> None:
        """Fills a row with a crop of a picture and of its label map."""
        pair = self.read(item)
        self.frames.place(batch, row, pair.pixels, pair.label_map, epoch, index)

    def read(self, item: tuple) -> Pair:
        """Decodes a picture and its label map, upright and of one size."""
        (place, name), labels = item
        config = self.frames.config
        picture = decoder.open_picture(self.reader.read(place), config.model.channels)
        if labels is None:
            pixels = picture.cut((0, 0, *picture.size))[0]
            unlabelled = np.full(pixels.shape[:2], label_values.IGNORED, np.uint8)
            return Pair(pixels, unlabelled, turned=False)
        label_place, label_name = labels
        try:
            stored = decode(self.label_reader.read(label_place), label_name)
        except (OSError, decoder.Unreadable) as error:
            raise decoder.Unreadable(f"{label_name}: {error}") from error
        turned = picture.turn != decoder.UPRIGHT
        if turned and self.orientation == "stored":
            stored, _ = decoder.to_upright(stored, (0, 0, *stored.shape), picture.turn)
        if stored.shape != tuple(picture.size):
            raise ValueError(
                f"{name} has {picture.size} pixels (height, width), its label map "
                f"{label_name} {stored.shape}; they have to agree."
                f"{turn_hint(picture, stored, self.orientation)}"
            )
        label_map = geometry.replace_labels(stored, self.table)
        check_labels(stored, label_map, config, label_name)
        return Pair(picture.cut((0, 0, *picture.size))[0], label_map, turned)


class Crops:
    """A random scale, then a crop of several classes; without an epoch the centre."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self._size = tuple(config.model.image_size)
        self._channels = config.model.channels

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Batch of `count` rows that are all padding."""
        return {
            "image": np.zeros((count, *self._size, self._channels), np.uint8),
            "label_map": np.full((count, *self._size), label_values.IGNORED, np.uint8),
            "image_size": np.zeros((count, 2), np.int32),
        }

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        pixels: np.ndarray,
        label_map: np.ndarray,
        epoch: int | None,
        index: int,
    ) -> None:
        """Crops a picture [h, w, C] and its label map [h, w] into a row of a batch."""
        augment = self.config.augment
        drawn = None
        if epoch is not None:
            drawn = crops.draw_scaled_crop(self.config, epoch, index)
        size, ratio = label_map.shape, 1.0 if drawn is None else drawn.ratio
        box = geometry.scaled_box(augment.fit, ratio)
        size = geometry.fit_size(size, box)
        label_map = geometry.resize_labels(label_map, size)
        room = crops.offset_limits(size, self._size)
        if drawn is None:
            y, x = room // 2
        else:
            offsets = (drawn.places * (room + 1)).astype(int)
            chosen = crops.first_varied_crop(
                label_map, self._size, offsets, augment.crop_share
            )
            y, x = offsets[chosen]
        label_map = label_map[y : y + self._size[0], x : x + self._size[1]]
        height, width = label_map.shape
        pixels = geometry.resize_image(pixels, size)[y : y + height, x : x + width]
        labels = batch["label_map"][row]
        labels[:height, :width] = label_map
        labels[height:] = label_values.IGNORED
        labels[:height, width:] = label_values.IGNORED
        shared_batches.paste(batch, row, pixels)
        batch["image_size"][row] = height, width


frames = Crops  # The layout of a training batch.
