# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""COCO's json of instances: read once, checked, every object left out counted.

What makes the file ambiguous is refused: an id that occurs twice, a category or key
that is not there. What spoils single objects (a polygon of two points, run lengths
without a pixel, no mask at all) leaves them out, and `Annotations.notes` counts them
by their reason.
"""

import collections
import functools
import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from g2sd_jax import errors
from g2sd_jax.data import encoded, geometry
from g2sd_jax.data.coco import run_lengths

NAMED = 3  # Objects, ids and categories that a line names.
LISTS = ("images", "annotations", "categories")
NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
Json = Mapping[str, Any]


class Instance(NamedTuple):
    """One object as it is annotated, in pixels of its picture."""

    label: int  # 0..K-1
    box: tuple[float, float, float, float]  # x1 y1 x2 y2
    area: float
    crowd: bool  # A region of many, which is neither an object nor background.
    polygons: tuple[np.ndarray, ...] = ()  # Each [k, 2] x, y; their union is the mask.
    rle: run_lengths.RunLengths | None = None  # Compressed; without polygons.

    def encoded(self, size: geometry.Size) -> run_lengths.RunLengths:
        """The mask as run lengths, in a picture of (height, width)."""
        if self.rle is not None:
            return self.rle
        return run_lengths.from_polygons(self.polygons, size)


class Image(NamedTuple):
    """A picture that the json names, and what is annotated in it."""

    id: int
    name: str  # Its file, with the folders that the json gives it.
    size: geometry.Size  # (height, width)
    instances: tuple[Instance, ...]

    @property
    def objects(self) -> tuple[Instance, ...]:
        """Its instances that are no crowd regions."""
        return tuple(instance for instance in self.instances if not instance.crowd)


class Annotations(NamedTuple):
    """A checked json."""

    images: tuple[Image, ...]  # In the order of their ids.
    category_ids: tuple[int, ...]  # Of labels 0..K-1, ascending.
    classes: tuple[str, ...]  # Names of labels 0..K-1.
    notes: tuple[str, ...]  # What was left out and why, and how ids became labels.


def read(path: Path) -> Annotations:
    """Reads a json or json.gz, unless it was read before and has not changed."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed: int, _size: int) -> Annotations:
    return check(load(path), str(path))


def load(path: Path) -> Json:
    """The three lists of a json; refuses a file that is no such thing."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        content = json.loads(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): copy or download it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no json, or not all of it ({error}): copy it again, or repair "
            "what wrote it."
        ) from error
    keys = sorted(content) if isinstance(content, Mapping) else []
    missing = [key for key in LISTS if key not in keys]
    if missing:
        holds = f"has the keys {errors.shorten_list(keys)}" if keys else "is a list"
        raise ValueError(
            f"{path} {holds}, but no {', '.join(missing)}: COCO's instances have "
            f"{', '.join(LISTS)} (captions, keypoints, results of a detector and other "
            "programs' projects are other files)."
        )
    for key in LISTS:
        if not isinstance(content[key], list):
            raise ValueError(f"{path}: {key!r} is no list.")
        for row, entry in enumerate(content[key]):
            lacking = [
                each
                for each in NEEDED[key]
                if not isinstance(entry, Mapping) or each not in entry
            ]
            if lacking:
                raise ValueError(
                    f"{path}: {key}[{row}] has no {', '.join(lacking)}, which every "
                    "entry needs."
                )
    return content


def check(content: Json, origin: str) -> Annotations:
    """Turns the lists of a json into `Annotations`.

    Args:
        content: of the file.
        origin: what errors and notes call it.
    """
    run_lengths.library()  # Where it is missing, no object is to blame.
    label_of, classes = number_categories(content["categories"], origin)
    for key in LISTS[:2]:
        check_ids(content[key], key, origin)
    images = {image["id"]: image for image in content["images"]}
    for image in images.values():
        check_image(image, origin)
    unknown = collections.Counter(
        annotation["category_id"]
        for annotation in content["annotations"]
        if annotation["category_id"] not in label_of
    )
    if unknown:
        raise ValueError(
            f"{origin}: {sum(unknown.values())} annotations are of the category ids "
            f"{errors.shorten_list(map(str, unknown))}, which its categories do not "
            "have; add them there, or remove the annotations."
        )
    instances: dict[int, list[Instance]] = {key: [] for key in images}
    left_out: dict[str, list] = {}
    for row, annotation in enumerate(content["annotations"]):
        number = annotation.get("id", f"number {row}")
        image = images.get(annotation["image_id"])
        if image is None:
            left_out.setdefault("a picture that it does not name", []).append(number)
            continue
        size = int(image["height"]), int(image["width"])
        try:
            instance = to_instance(
                annotation, label_of[annotation["category_id"]], size
            )
        except Spoilt as reason:
            left_out.setdefault(str(reason), []).append(number)
            continue
        instances[annotation["image_id"]].append(instance)
    total = len(content["annotations"])
    if total and not any(instances.values()):
        raise ValueError(
            f"{origin}: none of its {total} annotations can be used: "
            f"{reasons(left_out)}. Boxes alone train no mask head: every object "
            "needs polygons or run lengths."
        )
    return Annotations(
        images=tuple(
            Image(
                id=key,
                name=errors.printable(image["file_name"]),
                size=(int(image["height"]), int(image["width"])),
                instances=tuple(instances[key]),
            )
            for key, image in sorted(images.items())
        ),
        category_ids=tuple(label_of),
        classes=classes,
        notes=(
            *category_notes(label_of, classes, origin),
            *left_out_notes(left_out, total, origin),
            *beyond_notes(images, instances, origin),
        ),
    )


def number_categories(
    categories: Sequence[Json], origin: str
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Labels 0..K-1 by category id, in the order of the ids, and their names."""
    check_ids(categories, "categories", origin)
    ordered = sorted(categories, key=lambda category: category["id"])
    names = tuple(errors.printable(category["name"]) for category in ordered)
    if not names:
        raise ValueError(f"{origin} has no categories.")
    encoded.check_names(names, origin)
    return {category["id"]: label for label, category in enumerate(ordered)}, names


def check_ids(entries: Sequence[Json], key: str, origin: str) -> None:
    """Refuses ids that are no whole numbers, or that two entries share."""
    ids = [entry["id"] for entry in entries if "id" in entry]
    odd = [each for each in ids if type(each) is not int]
    if odd:
        raise ValueError(
            f"{origin}: {key} have ids that are no whole numbers, such as {odd[0]!r}; "
            "number them."
        )
    twice = [each for each, times in collections.Counter(ids).items() if times > 1]
    if twice:
        raise ValueError(
            f"{origin}: {len(twice)} ids of {key} occur more than once "
            f"({errors.shorten_list(map(str, twice))}), so that other tools drop all "
            "but the last of each: give every entry an id of its own (files that were "
            "joined have to be numbered anew)."
        )


def check_image(image: Json, origin: str) -> None:
    """Refuses a picture without a size or a name."""
    sides = image["height"], image["width"]
    if any(type(side) not in (int, float) or not side >= 1 for side in sides):
        raise ValueError(
            f"{origin}: picture {image['file_name']!r} is {sides[0]!r} x {sides[1]!r} "
            "pixels (height, width); give its true size."
        )
    if not isinstance(image["file_name"], str) or not image["file_name"]:
        raise ValueError(
            f"{origin}: picture {image['id']} has the file name "
            f"{image['file_name']!r}; give its path beneath config.data.images."
        )


class Spoilt(ValueError):
    """The reason why an annotation cannot be used, as a clause that others share."""


def to_instance(annotation: Json, label: int, size: geometry.Size) -> Instance:
    """One annotation as an `Instance`.

    Args:
        annotation: of the json.
        label: of its category.
        size: (height, width) of its picture.

    Raises:
        Spoilt: it has no mask that can be used.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise Spoilt("no mask")
    polygons, compressed = (), None
    if isinstance(segmentation, Mapping):
        compressed = check_run_lengths(segmentation, size)
    else:
        polygons = check_polygons(segmentation)
    instance = Instance(
        label=label,
        box=(0.0, 0.0, 0.0, 0.0),
        area=0.0,
        crowd=bool(annotation.get("iscrowd", 0)),
        polygons=polygons,
        rle=compressed,
    )
    box, area = annotation.get("bbox"), annotation.get("area")
    if box is None:
        x, y, width, height = mask_box(instance)
    else:
        x, y, width, height = check_box(box)
    if type(area) not in (int, float) or not math.isfinite(area):
        area = run_lengths.area([instance.encoded(size)])[0]
    return instance._replace(box=(x, y, x + width, y + height), area=float(area))


def mask_box(instance: Instance) -> tuple[float, ...]:
    """x, y, width, height of the tight box around a mask."""
    if instance.rle is not None:
        return tuple(run_lengths.boxes([instance.rle])[0].tolist())
    points = np.concatenate(instance.polygons)
    low, high = points.min(axis=0), points.max(axis=0)
    return (*low.tolist(), *(high - low).tolist())


def check_box(box: Any) -> tuple[float, ...]:
    """(x, y, width, height) as floats, if that is what the box is."""
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or any(type(each) not in (int, float) for each in box):
        raise Spoilt("a box that is not x, y, width, height")
    if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise Spoilt("a box without area")
    return tuple(map(float, box))


def check_polygons(segmentation: Any) -> tuple[np.ndarray, ...]:
    """[k, 2] float64 of every polygon that has at least three points."""
    if not isinstance(segmentation, list) or not all(
        isinstance(polygon, list) for polygon in segmentation
    ):
        raise Spoilt("a mask that is neither polygons nor run lengths")
    polygons = []
    for polygon in segmentation:
        if len(polygon) % 2 or len(polygon) < 2 * run_lengths.LEAST_POINTS:
            continue
        try:
            points = np.array(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise Spoilt("a polygon whose coordinates are no numbers") from error
        if not np.isfinite(points).all():
            raise Spoilt("a polygon whose coordinates are no numbers")
        polygons.append(points)
    if not polygons:
        raise Spoilt("polygons of fewer than three points")
    return tuple(polygons)


def check_run_lengths(
    segmentation: Json, size: geometry.Size
) -> run_lengths.RunLengths:
    """Compressed run lengths of a mask, if they are of the picture's size."""
    if "size" not in segmentation or "counts" not in segmentation:
        raise Spoilt("a mask that is neither polygons nor run lengths")
    if list(segmentation["size"]) != list(size):
        raise Spoilt("run lengths of another size than the picture")
    try:
        lengths = run_lengths.read(segmentation)
    except ValueError as error:
        raise Spoilt("run lengths that do not fill the picture") from error
    if not any(lengths[1::2]):
        raise Spoilt("run lengths without a pixel")
    return run_lengths.compress(segmentation)


def reasons(left_out: Mapping[str, Sequence]) -> str:
    """`no mask 3 (annotations 5, 8 and 1 more)`, reason by reason."""
    listed = (
        f"{reason} {len(ids)} (annotations "
        f"{errors.shorten_list(map(str, ids), most=NAMED)})"
        for reason, ids in sorted(left_out.items(), key=lambda item: -len(item[1]))
    )
    return ", ".join(listed)


def left_out_notes(
    left_out: Mapping[str, Sequence], total: int, origin: str
) -> tuple[str, ...]:
    """A line about the annotations that are not used, if there are any."""
    count = sum(map(len, left_out.values()))
    if not count:
        return ()
    return (
        f"WARNING: {origin}: {count} of {total} annotations are left out, in training "
        f"and evaluation: {reasons(left_out)}.",
    )


def category_notes(
    label_of: Mapping[int, int], classes: Sequence[str], origin: str
) -> tuple[str, ...]:
    """A line on how category ids became labels, where they are not 0..K-1."""
    ids = list(label_of)
    if ids == list(range(len(ids))):
        return ()
    gaps = ids[-1] - ids[0] + 1 - len(ids)
    skipped = f" ({gaps} gaps)" if gaps else ""
    rows = [
        f"{key} is {label} {name}"
        for (key, label), name in zip(label_of.items(), classes, strict=True)
    ]
    if len(rows) > 2 * NAMED:
        rows = [*rows[:NAMED], "…", *rows[-NAMED:]]
    return (
        f"{origin}: category ids {ids[0]}..{ids[-1]}{skipped} are numbered "
        f"0..{len(ids) - 1}: {', '.join(rows)}; results are written with the ids.",
    )


def beyond_notes(
    images: Mapping[int, Json],
    instances: Mapping[int, Sequence[Instance]],
    origin: str,
) -> tuple[str, ...]:
    """A line about boxes that leave their picture, if there are any."""
    total = beyond = 0
    for key, image in images.items():
        for instance in instances[key]:
            x1, y1, x2, y2 = instance.box
            total += 1
            beyond += min(x1, y1) < -1 or (
                x2 > image["width"] + 1 or y2 > image["height"] + 1
            )
    if not beyond:
        return ()
    hint = ""
    if beyond > total / 4:
        hint = " Is a box x1, y1, x2, y2 there? It has to be x, y, width, height."
    return (
        f"WARNING: {origin}: {beyond} of {total} boxes leave their picture by more "
        f"than a pixel; in training they are clipped.{hint}",
    )
