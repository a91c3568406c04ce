# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures with objects: `config.data.source="coco"`, a json and a folder or a tar.

Training sees large-scale jitter (`jitter`) and the objects that are left (`instances`);
crowd regions are no objects, and pictures without an object are not trained on.
Evaluation sees every picture of the json once, and the annotations as they are.
"""

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import (
    decoder,
    encoded,
    failures,
    filling,
    folder,
    geometry,
    pipeline,
    reading,
    walk,
)
from g2sd_jax.data.coco import annotations as coco_json
from g2sd_jax.data.coco import instances, jitter
from g2sd_jax.data.processes import shared_batches

CHECKED = 64  # Pictures whose size is compared before a run; the others as they come.
NAMED = 3  # Files that a line names.
NO_FRAME = np.array([0, 0, 1, 1], np.float32)  # Of no object: nothing divides by 0.
SURPLUS = ("refuse", "sample")
ACCEPTED = (
    "a folder, or a .tar, .tar.gz or .tgz of one, with the pictures that the json names"
)


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """All pictures of one split, decoded on demand.

    Batches are those of `Canvas`. The original of an example is what an evaluator
    compares with: `image_id`, `size` (height, width), and of every annotation `labels`,
    `boxes` x1 y1 x2 y2, `areas`, `crowd` and `masks` in run lengths.
    """
    annotations, files = list_pictures(config, split)
    return make_dataset(config, split, annotations, files)


def load_training(config: ConfigDict, split: str) -> datasets.Dataset:
    """The pictures of one split that have an object, no more than the recipe holds."""
    annotations, files = list_pictures(config, split)
    check_categories(config, annotations)
    rows = [row for row, image in enumerate(annotations.images) if image.objects]
    empty = files.count - len(rows)
    if empty:
        note = (
            f"{files.origin}: {empty} of {files.count} pictures without an object are "
            "not trained on."
        )
        files = files._replace(notes=(*files.notes, note))
    if not rows:
        raise ValueError(f"{files.origin} has no picture with an object.")
    annotations = annotations._replace(
        images=tuple(annotations.images[row] for row in rows)
    )
    name = files.name
    files = files._replace(
        count=len(rows),
        places=[files.places[row] for row in rows],
        name=lambda index: name(rows[index]),
    )
    check_counts(config, annotations, files)
    return make_dataset(config, split, annotations, files)


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of pictures of a split that have an object, and of categories."""
    annotations, _ = list_pictures(config, split)
    with_objects = sum(bool(image.objects) for image in annotations.images)
    return with_objects, len(annotations.classes)


def list_pictures(
    config: ConfigDict, split: str
) -> tuple[coco_json.Annotations, encoded.Encoded]:
    """The annotations of a split, and the picture of each at the same index."""
    decoder.check_channels(config.model.channels)
    if config.data.class_list:
        raise ValueError(
            f"config.data.class_list={config.data.class_list}: a json has classes of "
            "its own; set it to ''."
        )
    annotations = coco_json.read(locate(config, "annotations", split))
    path = locate(config, "images", split)
    if path.is_file() and not path.name.endswith(folder.TARS):
        raise ValueError(
            f"config.data.images={config.data.images!r}: {path} is not {ACCEPTED}."
        )
    root = folder.open_root(path)
    listing = root.beneath("")
    names = match_names([image.name for image in annotations.images], listing, path)
    if config.data.hold_out:
        keys = ("images", "annotations")
        chosen = folder.hold_out_files(config, split, names, keys)
        images = zip(annotations.images, names, strict=True)
        images = tuple(image for image, name in images if name in chosen)
        annotations = annotations._replace(images=images)
        names = [name for name in names if name in chosen]
    places = [listing.files[name] for name in names]
    above = f"{path}{root.separator}"
    origin = f"split {split!r} of {path}"
    notes = [*annotations.notes, *walk.notes(listing, origin)]
    unnamed = 0 if config.data.hold_out else len(listing.files) - len(set(names))
    if unnamed:
        notes.append(f"{origin}: {unnamed} pictures are not in the json, and not used.")
    return annotations, encoded.Encoded(
        count=len(names),
        classes=annotations.classes,
        labels=None,
        places=places,
        reader=root.reader,
        name=lambda index: f"{above}{names[index]}",
        origin=origin,
        notes=tuple(notes),
    )


def locate(config: ConfigDict, key: str, split: str) -> Path:
    """The file or folder that `config.data[key]` names beneath `config.data.path`."""
    top = Path(config.data.path.replace("{split}", split)).expanduser()
    path = top / config.data[key].replace("{split}", split)
    if not config.data.path or not path.exists():
        here = sorted(each.name for each in top.iterdir()) if top.is_dir() else []
        holds = f"{top} holds {errors.shorten_list(here, most=8)}" if here else "Set it"
        raise ValueError(
            f"config.data.path={config.data.path!r} and config.data.{key}="
            f"{config.data[key]!r}: there is no {path} for split {split!r}. {holds}; "
            "{split} in either stands for config.data.train_split or eval_split."
        )
    return path


def match_names(names: Sequence[str], listing: walk.Listing, path: Path) -> list[str]:
    """The file beneath a folder or a tar that each name of a json means.

    The json may name folders above `config.data.images`, or leave out some below; what
    is there of both has to agree.

    Args:
        names: of the pictures in the json.
        listing: of the folder or tar.
        path: of it, for errors.
    """
    by_base: dict[str, list[str]] = {}
    for file in listing.files:
        by_base.setdefault(posixpath.basename(file), []).append(file)
    matches, missing = [], []
    for name in names:
        wanted = posixpath.normpath(name.replace("\\", "/")).lstrip("/")
        candidates = [
            file
            for file in by_base.get(posixpath.basename(wanted), ())
            if f"/{file}".endswith(f"/{wanted}") or f"/{wanted}".endswith(f"/{file}")
        ]
        if wanted in candidates:
            candidates = [wanted]
        if len(candidates) > 1:
            raise ValueError(
                f"{path} has several files that the json may mean by {name!r}: "
                f"{errors.shorten_list(candidates)}; name one folder or tar of them in "
                "config.data.images, or write the folders into the json."
            )
        matches += candidates
        missing += [] if candidates else [name]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} pictures of the json are not in {path} "
            f"({errors.shorten_list(missing, most=NAMED)}), which holds "
            f"{len(listing.files)} pictures; complete it, correct config.data.images, "
            "or take them out of the json."
        )
    return matches


def check_categories(config: ConfigDict, annotations: coco_json.Annotations) -> None:
    """Refuses splits whose categories differ: labels would mean different things."""
    split = config.data.eval_split
    try:
        path = locate(config, "annotations", split)
    except ValueError:
        return  # Its own loading says so, if it is evaluated.
    other = coco_json.read(path)
    rows = [
        set(zip(each.category_ids, each.classes, strict=True))
        for each in (annotations, other)
    ]
    differing = sorted(rows[0] ^ rows[1])
    if differing:
        listed = errors.shorten_list(
            [f"{key} {name}" for key, name in differing], most=NAMED
        )
        raise ValueError(
            f"splits {config.data.train_split!r} and {split!r} differ in their "
            f"categories, so that labels would mean different things; only one of the "
            f"two json has: {listed}. Give both the same ids and names."
        )


def check_counts(
    config: ConfigDict, annotations: coco_json.Annotations, files: encoded.Encoded
) -> None:
    """Refuses pictures with more objects than `config.data.max_boxes`."""
    most, surplus = config.data.max_boxes, config.data.surplus
    errors.one_of("config.data.surplus", surplus, SURPLUS)
    if most < 1 or config.data.mask_size < 1:
        raise ValueError(
            f"config.data.max_boxes={most} and config.data.mask_size="
            f"{config.data.mask_size} have to be at least 1."
        )
    counts = [len(image.objects) for image in annotations.images]
    over, largest = sum(count > most for count in counts), max(counts)
    if over and surplus == "refuse":
        raise ValueError(
            f"{over} of {files.count} pictures have more than config.data.max_boxes="
            f"{most} objects; {files.name(counts.index(largest))} has {largest}. Set "
            f"--config.data.max_boxes={largest}, or --config.data.surplus=sample for a "
            f"random {most} of them in every epoch."
        )


def make_dataset(
    config: ConfigDict,
    split: str,
    annotations: coco_json.Annotations,
    files: encoded.Encoded,
) -> datasets.Dataset:
    """The `Dataset` of pictures and their annotations, at the same indices."""
    canvas = Canvas(config)
    count = pipeline.example_count(config, files)
    pictures = Annotated(files.reader, canvas, config.model.channels)
    filler = filling.Filler(config, split, count, pictures)

    def item(index):
        image = annotations.images[index]
        return files.places[index], files.name(index), image.size, image.objects

    candidates = filling.Candidates(count, item, files.name, files.origin)

    def fetch(indices, epoch=None):
        batch, used, valid = filler.fill(indices, epoch, candidates)
        return {**batch, "index": used, "valid": valid}

    for index in np.unique(np.linspace(0, count - 1, CHECKED if count else 0)):
        try:
            pictures.open(*item(int(index))[:3])
        except (OSError, decoder.Unreadable) as error:
            name = files.name(int(index))
            failures.note(config, split, count, int(index), name, error)
    return datasets.Dataset(
        count=count,
        classes=annotations.classes,
        fetch=fetch,
        original=lambda index: original(annotations.images[index]),
        ahead=config.data.prefetch,
        notes=files.notes,
        objects=list_objects(annotations.images[:count], canvas.size),
        describe=dict(category_ids=list(annotations.category_ids)),
    )


def original(image: coco_json.Image) -> Mapping:
    """What an evaluator compares the answers for a picture with."""
    annotated = image.instances
    return {
        "image_id": image.id,
        "size": image.size,
        "labels": np.array([each.label for each in annotated], np.int32),
        "boxes": np.array([each.box for each in annotated]).reshape(-1, 4),
        "areas": np.array([each.area for each in annotated], np.float64),
        "crowd": np.array([each.crowd for each in annotated], bool),
        "masks": [each.encoded(image.size) for each in annotated],
    }


def list_objects(
    images: Sequence[coco_json.Image], canvas: tuple[int, int]
) -> datasets.Objects:
    """Labels, pictures and sizes of all objects, as evaluation shows them."""
    rows = [
        (each.label, number, each.box, jitter.evaluation_view(image.size, canvas).scale)
        for number, image in enumerate(images)
        for each in image.objects
    ]
    boxes = np.array([box for _, _, box, _ in rows]).reshape(-1, 4)
    scales = np.array([scale for _, _, _, scale in rows]).reshape(-1, 2)
    return datasets.Objects(
        labels=np.array([row[0] for row in rows], np.int32),
        examples=np.array([row[1] for row in rows], np.int64),
        sides=(boxes[:, 2:] - boxes[:, :2]) * scales,
    )


def check_size(size: geometry.Size, picture: decoder.Picture, name: str) -> None:
    """Refuses a picture of another size than its json says.

    Args:
        size: (height, width) in the json.
        picture: opened.
        name: of its file.
    """
    if tuple(picture.size) == size:
        return
    hint = "correct the json, or put the picture there that was annotated"
    if picture.size[::-1] == size and picture.turn[0]:
        hint = (
            "its EXIF orientation turns it upright, but it was annotated as it is "
            "stored: remove that tag (exiftool -Orientation=)"
        )
    raise ValueError(
        f"{name} has {tuple(picture.size)} pixels (height, width), but the json says "
        f"{size}; {hint}."
    )


class Canvas:
    """A batch of pictures of any sizes, at the top left of canvases of one size.

    `image` [B, H, W, C] uint8 is zero where `size` [B, 2] int32, the height and width
    of the picture on it, says that it ends. In training there are also, of up to G
    objects, `boxes` [B, G, 4] float32 (x1 y1 x2 y2 in pixels of the canvas), `labels`
    [B, G] int32, `valid_boxes` [B, G] bool, and `masks` [B, G, M, M] uint8, each inside
    its row of `frames` [B, G, 4].
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        self.size = tuple(config.model.image_size)
        self._channels = config.model.channels
        self._most, self._mask_size = config.data.max_boxes, config.data.mask_size
        jitter.check(config.augment)

    def empty(self, count: int, targets: bool = True) -> dict[str, np.ndarray]:
        """Batch of `count` rows of padding alone; `targets` are those of training."""
        batch = {
            "image": np.zeros((count, *self.size, self._channels), np.uint8),
            "size": np.zeros((count, 2), np.int32),
        }
        if not targets:
            return batch
        each, side = (count, self._most), self._mask_size
        return batch | {
            "boxes": np.zeros((*each, 4), np.float32),
            "labels": np.zeros(each, np.int32),
            "valid_boxes": np.zeros(each, bool),
            "masks": np.zeros((*each, side, side), np.uint8),
            "frames": np.tile(NO_FRAME, (*each, 1)),
        }

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        pixels: np.ndarray,
        objects: Sequence[coco_json.Instance],
        epoch: int | None,
        index: int,
    ) -> None:
        """Puts a picture [h, w, C] and its objects into a row of a batch.

        Args:
            batch: of `empty`, with targets where there is an epoch.
            row: in it.
            pixels: of the picture.
            objects: in it; crowd regions are none.
            epoch: None evaluates.
            index: of the example.
        """
        size = pixels.shape[:2]
        if epoch is None:
            view = jitter.evaluation_view(size, self.size)
        else:
            draws = jitter.draw(self._config, epoch, index)
            view = jitter.training_view(size, self.size, draws, self._config.augment)
        shared_batches.paste(batch, row, jitter.resize(pixels, view))
        batch["size"][row] = view.shown
        if epoch is None:
            return
        shown = instances.show(objects, view, self._mask_size)
        chosen = jitter.choose(self._config, epoch, index, len(shown.rows), self._most)
        n = len(chosen)
        boxes = shown.boxes[chosen]
        for name, values, padding in (
            ("boxes", boxes, 0),
            ("frames", boxes, NO_FRAME),
            ("labels", [objects[each].label for each in shown.rows[chosen]], 0),
            ("valid_boxes", True, False),
            ("masks", shown.masks[chosen], 0),
        ):
            batch[name][row, :n] = values
            batch[name][row, n:] = padding


class Annotated(NamedTuple):
    """Reads pictures with their objects: the `filling.Examples` of this source.

    An item is (place, name, (height, width) in the json, objects).
    """

    reader: reading.Reader
    canvas: Canvas
    channels: int

    def empty(self, count: int, training: bool) -> dict[str, np.ndarray]:
        """Batch of `count` rows that are all padding."""
        return self.canvas.empty(count, targets=training)

    def open(
        self, place: walk.Place, name: str, size: geometry.Size
    ) -> decoder.Picture:
        """Opens a picture, which has to be of the size that the json says."""
        picture = decoder.open_picture(self.reader.read(place), self.channels)
        check_size(size, picture, name)
        return picture

    def place(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        item: tuple,
        epoch: int | None,
        index: int,
    ) -> None:
        """Fills a row with a picture and, in training, its objects."""
        *where, objects = item
        picture = self.open(*where)
        pixels, _ = picture.cut((0, 0, *picture.size))
        self.canvas.place(batch, row, pixels, objects, epoch, index)


frames = Canvas  # The layout of a training batch.
