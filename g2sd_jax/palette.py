# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colours of classes: which one each has, pictures tinted by them, a legend."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g2sd_jax.data import geometry

IGNORED = geometry.IGNORED
LEVELS = 9  # Of red, green and blue, that colours are chosen among.
LIGHTNESS = (35, 93)  # Neither near black, which is for what is ignored, nor white.
STRENGTH = 0.6  # Share of the class's colour in a tinted picture.
LINE, SWATCH = 14, 10  # Pixels of a line, a coloured square.


@functools.cache
def colours() -> np.ndarray:
    """[256, 3] uint8 RGB by class; that of `IGNORED` is black.

    Each is the one farthest, to the eye (CIE Lab), from all before it and from black:
    few classes are told apart at a glance, and class 3 is called the same whatever the
    number of classes.
    """
    level = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    known = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(-1, 3)
    places = lab(known)
    bright = (places[:, 0] > LIGHTNESS[0]) & (places[:, 0] < LIGHTNESS[1])
    known, places = known[bright], places[bright]
    apart = np.linalg.norm(places, axis=1)  # Black is at the origin.
    table = np.zeros((256, 3), np.uint8)
    for label in range(IGNORED):
        best = apart.argmax()
        table[label] = known[best]
        apart = np.minimum(apart, np.linalg.norm(places - places[best], axis=1))
    return table


def lab(rgb: np.ndarray) -> np.ndarray:
    """[N, 3] CIE Lab (D65) of [N, 3] uint8 sRGB."""
    share = rgb / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def tinted(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] uint8 in the colours of [H, W]; what is ignored darkens."""
    colour = colours()[label_map].astype(np.float32)
    mixed = STRENGTH * colour + (1 - STRENGTH) * image
    return (mixed + 0.5).astype(np.uint8)


def indexed(label_map: np.ndarray) -> Image.Image:
    """Labels as they are, in a PNG that viewers show in colour."""
    image = Image.fromarray(label_map)
    image.putpalette(colours().tobytes())
    return image


def legend(rows: Sequence[tuple[int, str]], width: int) -> Image.Image:
    """(label, words) each beside its colour, in as many columns as fit the width."""
    font = ImageFont.load_default()
    longest = max((font.getlength(words) for _, words in rows), default=0)
    cell = SWATCH + 12 + math.ceil(longest)
    columns = max(1, width // cell)
    lines = -(-len(rows) // columns)
    whole = Image.new("RGB", (max(width, cell), lines * LINE + 4), "white")
    draw = ImageDraw.Draw(whole)
    for number, (label, words) in enumerate(rows):
        x, y = number // lines * cell + 3, number % lines * LINE + 3
        colour = tuple(map(int, colours()[label]))
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=colour, outline="black")
        draw.text((x + SWATCH + 4, y - 1), words, fill="black", font=font)
    return whole


def above(*images: Image.Image) -> Image.Image:
    """The first above the second and so on, on white."""
    size = max(each.width for each in images), sum(each.height for each in images)
    whole, top = Image.new("RGB", size, "white"), 0
    for each in images:
        whole.paste(each, (0, top))
        top += each.height
    return whole


def drawable(name: str, label: int) -> str:
    """What a class is called in a picture: by its number, if the font lacks a letter.

    Pillow's own font has those of ASCII alone, and a box for each other one.
    """
    return name if name.isascii() else str(label)
