# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The objects of a picture as a view of it shows them: boxes, and masks in frames.

A mask is M x M zeros and ones, sampled inside its frame, which is the object's box:
so a small object's outline is as fine as a large one's. Polygons are cut off at the
edge of the view and rasterised there; run lengths are decoded, resized to the nearest
pixel and cropped.
"""

import importlib
import types
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from g2sd_jax.data.coco import annotations as coco_json
from g2sd_jax.data.coco import jitter, run_lengths

LEAST_SIDE = 1e-5  # Pixels of a box that is taken for one.
LEAST_EXTENT = 0.1  # Pixels to which a frame is enlarged before it divides.


def library() -> types.ModuleType:
    """`shapely`, or a sentence that says how to install it."""
    try:
        return importlib.import_module("shapely")
    except ImportError:
        raise ValueError(
            "polygons are cut off by shapely: pip install 'g2sd_jax[detection]'."
        ) from None


class Shown(NamedTuple):
    """Objects on a canvas, those alone that the view shows."""

    boxes: np.ndarray  # [n, 4] float32 x1 y1 x2 y2, pixels of the canvas
    masks: np.ndarray  # [n, M, M] uint8 of zeros and ones, each in its box
    rows: np.ndarray  # [n] int64, the number of each among all objects


def show(
    objects: Sequence[coco_json.Instance], view: jitter.View, mask_size: int
) -> Shown:
    """Boxes and masks of objects in a view of their picture.

    A box is the tight one around what is left of its mask, not the annotated one.

    Args:
        objects: of the picture.
        view: of it.
        mask_size: M.
    """
    outlines = clip([each.polygons for each in objects], view)
    boxes, masks, rows = [], [], []
    for row, (each, polygons) in enumerate(zip(objects, outlines, strict=True)):
        if each.rle is None:
            box = bounds(polygons)
        else:
            bitmap, corner = sample(each.rle, view)
            box = tight_box(bitmap, corner)
        if min(box[2] - box[0], box[3] - box[1]) <= LEAST_SIDE:
            continue
        if each.rle is None:
            mask = in_frame(polygons, box, mask_size)
        else:
            mask = nearest(bitmap, box - np.tile(corner, 2), mask_size)
        boxes.append(box)
        masks.append(mask)
        rows.append(row)
    return Shown(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        masks=np.array(masks, np.uint8).reshape(-1, mask_size, mask_size),
        rows=np.array(rows, np.int64),
    )


def clip(
    outlines: Sequence[Sequence[np.ndarray]], view: jitter.View
) -> list[list[np.ndarray]]:
    """The parts of polygons that a view shows, in pixels of the canvas.

    Args:
        outlines: the polygons [k, 2] of each object.
        view: of their picture.

    Returns:
        As many lists, of polygons that may be more, or fewer, than before.
    """
    parts: list[list[np.ndarray]] = [[] for _ in outlines]
    owners = [i for i, polygons in enumerate(outlines) for _ in polygons]
    if not owners:
        return parts
    lengths = [len(polygon) for polygons in outlines for polygon in polygons]
    points = np.concatenate([p for polygons in outlines for p in polygons])
    if view.flipped:
        points = np.stack([view.size[1] - points[:, 0], points[:, 1]], axis=1)
    points = points * view.scale
    shapely = library()
    rings = shapely.linearrings(
        points, indices=np.repeat(np.arange(len(lengths)), lengths)
    )
    (y, x), (height, width) = view.corner, view.shown
    # A buffer of no width makes a valid polygon of one that crosses itself, which may
    # lose a part, as in the authors' pipeline.
    cut = shapely.intersection(
        shapely.buffer(shapely.polygons(rings), 0),
        shapely.box(x, y, x + width, y + height),
    )
    pieces, numbers = shapely.get_parts(cut, return_index=True)
    for piece, number in zip(pieces, numbers, strict=True):
        if shapely.get_type_id(piece) != shapely.GeometryType.POLYGON:
            continue  # A point or a line, where it touches the edge.
        ring = shapely.get_coordinates(shapely.get_exterior_ring(piece))
        if len(ring):
            parts[owners[number]].append(ring[:-1] - (x, y))
    return parts


def bounds(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """[4] the tight box around polygons; zeros of none."""
    if not polygons:
        return np.zeros(4)
    points = np.concatenate(polygons)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def in_frame(
    polygons: Sequence[np.ndarray], frame: np.ndarray, mask_size: int
) -> np.ndarray:
    """[M, M] uint8: polygons rasterised in a frame [4], by COCO's rule."""
    extent = np.maximum(frame[2:] - frame[:2], LEAST_EXTENT)
    scaled = [(polygon - frame[:2]) * (mask_size / extent) for polygon in polygons]
    return run_lengths.decode(run_lengths.from_polygons(scaled, (mask_size, mask_size)))


def sample(
    mask: run_lengths.RunLengths, view: jitter.View
) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of a mask that a view shows, resized to the nearest pixel.

    Returns:
        [h, w] uint8, no larger than around the object, and its corner (x, y) on the
        canvas.
    """
    x, y, width, height = run_lengths.boxes([mask])[0].astype(int)
    if view.flipped:
        x = view.size[1] - x - width
    bitmap = run_lengths.decode(mask)
    rows, columns = (
        nearest_places(view, axis, start, start + extent)
        for axis, start, extent in ((0, y, height), (1, x, width))
    )
    corner = tuple(int(each.shown[:1].sum()) for each in (columns, rows))
    across = columns.source
    if view.flipped:
        across = view.size[1] - 1 - across
    return bitmap[rows.source[:, None], across], corner


class Places(NamedTuple):
    """Pixels along one axis of a canvas, and those of the picture that they show."""

    shown: np.ndarray  # [k] ascending
    source: np.ndarray  # [k]


def nearest_places(view: jitter.View, axis: int, start: int, stop: int) -> Places:
    """The pixels of the canvas that show pixels `start` to `stop` of the picture.

    Args:
        view: of the picture.
        axis: 0 of rows, 1 of columns.
        start: first pixel of the flipped picture.
        stop: the one behind the last.
    """
    shown = np.arange(view.shown[axis])
    old, new = view.size[axis], view.resized[axis]
    # The pixel that holds the middle of the new one, in whole numbers: no rounding.
    source = (2 * (shown + view.corner[axis]) + 1) * old // (2 * new)
    inside = (source >= start) & (source < stop)
    return Places(shown[inside], source[inside])


def tight_box(bitmap: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """[4] the whole pixels that a bitmap [h, w] covers; zeros where it is empty."""
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(4)
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return (box + np.tile(corner, 2)).astype(np.float64)


def nearest(bitmap: np.ndarray, frame: np.ndarray, mask_size: int) -> np.ndarray:
    """[M, M] uint8: a bitmap [h, w] sampled in a frame [4] of its pixels."""
    middle = np.arange(mask_size) + 0.5
    columns, rows = (
        (frame[axis] + middle * (frame[axis + 2] - frame[axis]) / mask_size).astype(int)
        for axis in (0, 1)
    )
    return bitmap[rows[:, None], columns]
