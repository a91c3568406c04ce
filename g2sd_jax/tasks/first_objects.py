# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Lines and pictures of objects before step 0: how many, how large, and where."""

import collections
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import core, outlines, palette, summary
from g2sd_jax.data import dataset as datasets

NAMED = 5  # Classes named from either end of a list.
SHARES = (5, 50, 95)  # Percentiles of the sizes of objects.
UNUSUAL = 0.1  # Share of objects beyond the anchors from which a warning is printed.


def object_lines(
    config: ConfigDict,
    anchors: Sequence[float],
    dataset: datasets.Dataset,
    batch: Mapping[str, jax.Array],
    evaluation: Callable[[], datasets.Dataset] | None = None,
) -> list[str]:
    """Objects of each class and each picture, and their sizes against the anchors.

    Args:
        config: the recipe.
        anchors: sides of the squares that anchors have the area of, in pixels.
        dataset: the training split; without `objects` the first batch speaks for it.
        batch: its first, on the device.
        evaluation: () -> the evaluation split, whose notes are printed too.
    """
    objects = dataset.objects
    notes = []
    if evaluation is not None:
        seen_before = set(dataset.notes)
        notes = [note for note in evaluation().notes if note not in seen_before]
    if objects is None or not len(objects.labels):
        return [*notes, batch_line(batch)]
    return [
        *notes,
        count_line(objects, dataset.count, config),
        *class_lines(objects, config.data.classes, dataset.classes),
        *size_lines(objects, anchors, config),
    ]


def batch_line(batch: Mapping[str, jax.Array]) -> str:
    """A line about the objects of a batch, where those of the split are not known."""
    rows, places = batch["valid_boxes"].shape
    return f"objects: up to {places} in each of the {rows} pictures of a batch"


def count_line(objects: datasets.Objects, count: int, config: ConfigDict) -> str:
    """A line about the objects of a picture."""
    each = np.bincount(objects.examples, minlength=count)
    return (
        f"objects: {len(objects.labels)} in {count} pictures, {each.min()} to "
        f"{each.max()} in one (median {np.median(each):g}); config.data.max_boxes="
        f"{config.data.max_boxes}"
    )


def class_lines(
    objects: datasets.Objects, classes: int, names: Sequence[str]
) -> list[str]:
    """Lines about the objects of each class, and about classes without any."""
    counts = np.bincount(objects.labels, minlength=classes)
    order = np.argsort(-counts, kind="stable")
    full = [label for label in order if counts[label]]
    listed = [f"{summary.name_of(label, names)} {counts[label]}" for label in full]
    if len(listed) > 2 * NAMED:
        listed = [*listed[:NAMED], "…", *listed[-NAMED:]]
    lines = [f"objects of each class: {', '.join(listed)}"]
    empty = [summary.name_of(label, names) for label in order if not counts[label]]
    if empty:
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        lines.append(
            f"classes without an object: {', '.join(empty[:NAMED])}{more}, "
            f"{len(empty)} of {classes}"
        )
    return lines


def size_lines(
    objects: datasets.Objects, anchors: Sequence[float], config: ConfigDict
) -> list[str]:
    """Lines about the sizes of objects on the canvas, against those of the anchors."""
    sides = np.sqrt(objects.sides.prod(axis=1))
    low, middle, high = np.percentile(sides, SHARES)
    height, width = config.model.image_size
    listed = ", ".join(f"{side:g}" for side in anchors)
    lines = [
        f"sizes on a canvas of {height} x {width}, as roots of the areas of boxes: "
        f"{SHARES[0]} % below {low:.1f} pixels, half below {middle:.1f}, "
        f"{100 - SHARES[2]} % above {high:.1f}; anchors: {listed}"
    ]
    # Half as large is an overlap of at most a quarter with any anchor.
    beyond = {
        "smaller than half of the smallest": (sides < min(anchors) / 2).mean(),
        "more than twice as large as the largest": (sides > 2 * max(anchors)).mean(),
    }
    lines += [
        f"WARNING: {share:.0%} of the objects are {how} anchor, so that they have to "
        "be found from anchors that hardly overlap them: choose other anchors, or "
        "another canvas."
        for how, share in beyond.items()
        if share > UNUSUAL
    ]
    return lines


def object_picture(example: Mapping, classes: Sequence[str]) -> core.Picture:
    """An image beside itself with the masks, boxes and classes of its objects."""
    image = example["image"]
    real = np.flatnonzero(example["valid_boxes"])
    drawn, counts = [], collections.Counter()
    for row in real:
        label = int(example["labels"][row])
        frame = np.asarray(example["frames"][row], np.float64)
        mask, corner = outlines.from_frame(
            example["masks"][row], frame, image.shape[:2]
        )
        drawn.append(outlines.Outline(label, example["boxes"][row], mask, corner))
        counts[label] += 1
    named = [
        (label, palette.drawable_name(summary.name_of(label, classes), label))
        for label in sorted(counts)
    ]
    most = [
        f"{name} {counts[label]}"
        for label, name in sorted(named, key=lambda each: -counts[each[0]])[:4]
    ]
    lines = [", ".join(most[i : i + 2]) for i in range(0, len(most), 2)]
    return core.Picture(
        image=image,
        beside=np.asarray(outlines.draw(image, drawn, least_side=1)),
        caption="\n".join(lines) or "no object",
        legend=named,
    )
