# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colours of classes: a table of them, pictures tinted by it, a legend."""

import functools
import importlib
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g2sd_jax import label_values

LEVELS = 17  # Of red, green and blue, that colours are chosen among.
LIGHTNESS = (35, 90)  # Neither near black, which is for what is ignored, nor white.
CHROMA = 85  # The most that a colour has, so that none outshines a picture.
FIRST = (80, 175, 239)  # The colour of class 0, a light blue.
# What eyes without red or green cones see of linear sRGB (Machado et al., 2009).
COLOUR_BLIND = (
    (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
)
WEIGHT = 1.5  # Of a distance that colour-blind eyes see, beside one of all others.
STRENGTH = 0.5  # Share of the class's colour in a tinted picture.
EDGE = 0.7  # Share of it, without the picture, at the edge of a region.
LINE, SWATCH = 14, 10  # Pixels of a line, a coloured square.
FONT_SIZE = 9  # Of DejaVu Sans, in pixels.


@functools.cache
def colours() -> np.ndarray:
    """[256, 3] uint8 RGB by class; that of `label_values.IGNORED` is black.

    Each is the one farthest, to the eye (CIE Lab) and to colour-blind ones, from all
    before it and from black: few classes are told apart at a glance, and class 3 is
    called the same whatever the number of classes.
    """
    level = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(-1, 3)
    places = lab(candidates)
    lightness, chroma = places[:, 0], np.hypot(places[:, 1], places[:, 2])
    calm = (lightness > LIGHTNESS[0]) & (lightness < LIGHTNESS[1]) & (chroma < CHROMA)
    candidates = candidates[calm]
    lab_views = views(candidates)  # [3, N, 3]
    weights = np.array([1.0, WEIGHT, WEIGHT])[:, None]

    def away(place):
        return (weights * np.linalg.norm(lab_views - place, axis=-1)).min(axis=0)

    apart = away(0.0)  # Black is at the origin.
    best = np.abs(candidates.astype(int) - FIRST).sum(axis=1).argmin()
    table = np.zeros((256, 3), np.uint8)
    for label in range(label_values.IGNORED):
        table[label] = candidates[best]
        apart = np.minimum(apart, away(lab_views[:, best : best + 1]))
        best = apart.argmax()
    return table


def views(rgb: np.ndarray) -> np.ndarray:
    """[3, N, 3] CIE Lab of [N, 3] uint8 sRGB: to the eye, and to two colour-blind."""
    light = linear(rgb)
    blind = [np.clip(light @ np.array(eye).T, 0, 1) for eye in COLOUR_BLIND]
    return np.stack([linear_to_lab(each) for each in (light, *blind)])


def lab(rgb: np.ndarray) -> np.ndarray:
    """[N, 3] CIE Lab (D65) of [N, 3] uint8 sRGB."""
    return linear_to_lab(linear(rgb))


def linear(rgb: np.ndarray) -> np.ndarray:
    """[N, 3] light in 0..1 of [N, 3] uint8 sRGB."""
    share = rgb / 255
    return np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)


def linear_to_lab(light: np.ndarray) -> np.ndarray:
    """[N, 3] CIE Lab (D65) of [N, 3] linear sRGB."""
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = light @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def tint(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] uint8 in the colours of [H, W]; ignored pixels darken.

    A region has a dark edge in its own colour, one pixel wide, on its right and below.
    """
    colour = colours()[label_map].astype(np.float32)
    mixed = STRENGTH * colour + (1 - STRENGTH) * image
    edge = np.zeros(label_map.shape, bool)
    edge[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    edge[:-1] |= label_map[1:] != label_map[:-1]
    mixed[edge] = EDGE * colour[edge]
    return (mixed + 0.5).astype(np.uint8)


def to_indexed(label_map: np.ndarray) -> Image.Image:
    """Labels [H, W] uint8 as an indexed image, which viewers show in colour."""
    image = Image.fromarray(label_map)
    image.putpalette(colours().tobytes())
    return image


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """The font of all drawings: DejaVu Sans, which comes with matplotlib.

    Pillow's own has the letters of ASCII alone.
    """
    folder = importlib.import_module("matplotlib").get_data_path()
    path = os.path.join(folder, "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, FONT_SIZE)


def legend(rows: Sequence[tuple[int, str]], width: int) -> Image.Image:
    """Draws (label, words), each beside its colour, in as many columns as fit.

    Args:
        rows: labels 0..255, and what stands beside their colours.
        width: pixels; a single column may be wider.
    """
    longest = max((font().getlength(words) for _, words in rows), default=0)
    cell = SWATCH + 12 + math.ceil(longest)
    columns = max(1, width // cell)
    lines = -(-len(rows) // columns)
    image = Image.new("RGB", (max(width, cell), lines * LINE + 4), "white")
    draw = ImageDraw.Draw(image)
    for number, (label, words) in enumerate(rows):
        x, y = number // lines * cell + 3, number % lines * LINE + 3
        colour = tuple(map(int, colours()[label]))
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=colour, outline="black")
        draw.text((x + SWATCH + 4, y - 1), words, fill="black", font=font())
    return image


def stack_vertically(*images: Image.Image) -> Image.Image:
    """Pastes images one below the other, on white."""
    size = max(image.width for image in images), sum(image.height for image in images)
    stack, top = Image.new("RGB", size, "white"), 0
    for image in images:
        stack.paste(image, (0, top))
        top += image.height
    return stack


def drawable_name(name: str, label: int) -> str:
    """The name of a class in a picture; its number, if the font lacks a letter."""
    box = bytes(font().getmask("\uffff"))  # What it draws for what it lacks.
    lacking = any(bytes(font().getmask(letter)) == box for letter in set(name))
    return str(label) if lacking else name
