# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detected instances: from the canvas of a network to their picture at its own size."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from g2sd_jax.data.coco import run_lengths
from g2sd_jax.ops import instance_masks

LEAST = 0.5  # Probability from which a pixel belongs to an instance.


class Instances(NamedTuple):
    """The instances that were detected in a picture, the surest first."""

    labels: np.ndarray  # [n] int32, 0..C-1
    scores: np.ndarray  # [n] float64, 0..1
    boxes: np.ndarray  # [n, 4] float64 x1 y1 x2 y2, pixels of the picture
    masks: Sequence[run_lengths.RunLengths]


def restore(outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> Instances:
    """Brings the answers for one picture to its own size.

    Boxes are scaled and clipped, those without area dropped; masks are stretched over
    their boxes and cut off at `LEAST`.

    Args:
        outputs: `boxes` [R, 4] in pixels of the canvas, `scores` [R], `labels` [R],
            `valid` [R], `masks` [R, M, M], the probabilities of each one's class, and
            `size` [2], the height and width of the picture on the canvas.
        size: (height, width) of the picture as it is.
    """
    height, width = size
    shown_height, shown_width = (float(side) for side in outputs["size"])
    scale = np.float32([width / shown_width, height / shown_height])
    boxes = outputs["boxes"].astype(np.float32) * np.tile(scale, 2)
    boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
    chosen = outputs["valid"] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes = boxes[chosen]
    return Instances(
        labels=outputs["labels"][chosen].astype(np.int32),
        scores=outputs["scores"][chosen].astype(np.float64),
        boxes=boxes.astype(np.float64),
        masks=[
            paste(mask, box, size)
            for mask, box in zip(outputs["masks"][chosen], boxes, strict=True)
        ],
    )


def paste(
    probabilities: np.ndarray, box: np.ndarray, size: tuple[int, int]
) -> run_lengths.RunLengths:
    """One mask in run lengths.

    Args:
        probabilities: [M, M] inside the box.
        box: [4] in pixels of the picture.
        size: (height, width) of the picture.
    """
    # Outside of the box every probability is less than a half.
    x1, y1 = np.maximum(np.floor(box[:2]) - 1, 0).astype(int)
    x2, y2 = np.minimum(np.ceil(box[2:]) + 1, size[::-1]).astype(int)
    corner = np.array([x1, y1, x1, y1], np.float32)
    window = (int(y2 - y1), int(x2 - x1))
    inside = instance_masks.paste(
        probabilities[None].astype(np.float32), (box - corner)[None], window
    )[0]
    mask = np.zeros(size, np.uint8, order="F")
    mask[y1:y2, x1:x2] = inside >= LEAST
    return run_lengths.encode(mask)


def rows(outputs: Mapping[str, np.ndarray], count: int) -> Iterator[dict]:
    """The first `count` rows of outputs [B, ...], each by itself."""
    for row in range(count):
        yield {name: values[row] for name, values in outputs.items()}
