# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Instances drawn over a picture: masks in the colours of classes, boxes, names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from g2sd_jax import palette

STRENGTH = 0.45  # Share of a class's colour inside a mask.
LEAST_SIDE = 320  # Pixels of the longer side, below which a drawing is enlarged.


class Outline(NamedTuple):
    """One instance, in pixels of the picture."""

    label: int
    box: np.ndarray  # [4] x1 y1 x2 y2
    mask: np.ndarray | None = None  # [h, w] bool, its top left corner at `corner`
    corner: tuple[int, int] = (0, 0)  # (x, y)
    words: str = ""  # Beside the box.


def draw(
    pixels: np.ndarray, outlines: Sequence[Outline], least_side: int = LEAST_SIDE
) -> Image.Image:
    """Draws instances over a picture, the first ones on top.

    Args:
        pixels: [H, W, C] uint8, grey or RGB.
        outlines: instances; the edge of a mask is darker than its inside, so that those
            of one class that touch are told apart.
        least_side: of the drawing's longer side; a smaller picture is enlarged.
    """
    if pixels.shape[-1] < 3:
        pixels = pixels[..., :1].repeat(3, axis=-1)
    tinted = np.array(pixels[..., :3])
    for outline in reversed(outlines):
        if outline.mask is not None:
            tint(tinted, outline)
    image = Image.fromarray(tinted)
    factor = -(-least_side // max(image.size))
    if factor > 1:
        size = tuple(factor * side for side in image.size)
        image = image.resize(size, Image.Resampling.NEAREST)
    canvas, font = ImageDraw.Draw(image), palette.font()
    for outline in reversed(outlines):
        colour = tuple(palette.colours()[outline.label % 255].tolist())
        x1, y1, x2, y2 = (factor * float(side) for side in outline.box)
        # A box that ends at x2 has its last pixel before it.
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        canvas.rectangle(corners, outline=colour)
        if outline.words:
            place = (x1 + 2, y1 + 1)
            canvas.rectangle(canvas.textbbox(place, outline.words, font), fill=colour)
            dark = sum(colour) > 3 * 127
            fill = "black" if dark else "white"
            canvas.text(place, outline.words, fill=fill, font=font)
    return image


def tint(image: np.ndarray, outline: Outline) -> None:
    """Colours the pixels of a mask in [H, W, 3] uint8; those at its edge darker."""
    x, y = outline.corner
    mask = np.asarray(outline.mask, bool)
    part = image[y : y + mask.shape[0], x : x + mask.shape[1]]
    mask = mask[: part.shape[0], : part.shape[1]]
    colour = palette.colours()[outline.label % 255].astype(np.float32)
    mixed = STRENGTH * colour + (1 - STRENGTH) * part[mask]
    part[mask] = (mixed + 0.5).astype(np.uint8)
    around = np.pad(mask, 1)
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    part[mask & ~inside] = (0.7 * colour).astype(np.uint8)


def from_frame(
    mask: np.ndarray, frame: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a picture that a mask [M, M] covers in a frame [4].

    Args:
        mask: zeros and ones.
        frame: x1 y1 x2 y2 in pixels of the picture.
        size: (height, width) of the picture.

    Returns:
        [h, w] bool, sampled at the middle of every pixel, and its corner (x, y).
    """
    low = np.maximum(np.floor(frame[:2]), 0).astype(int)
    high = np.minimum(np.ceil(frame[2:]), size[::-1]).astype(int)
    extent = np.maximum(frame[2:] - frame[:2], 1e-6)
    places, inside = [], []
    for axis in (0, 1):
        middle = np.arange(low[axis], high[axis]) + 0.5
        share = (middle - frame[axis]) / extent[axis]
        inside.append((share >= 0) & (share < 1))
        places.append(np.clip((share * len(mask)).astype(int), 0, len(mask) - 1))
    covered = np.asarray(mask, bool)[places[1][:, None], places[0]]
    return covered & inside[1][:, None] & inside[0], tuple(low.tolist())
