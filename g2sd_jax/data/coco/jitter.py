# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Large-scale jitter: flip, resize, crop, as a `View` of a picture on a canvas.

After Ghiasi et al., "Simple Copy-Paste", 2021, as ViTDet trains: a picture is scaled to
a random share of the canvas, and cropped where it is larger. A smaller one stays
smaller; what it leaves of the canvas is padding at the bottom and the right.
"""

import zlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from g2sd_jax.data import crops, geometry

DRAWS = zlib.crc32(b"large-scale jitter")
SURPLUS = zlib.crc32(b"surplus objects")


class Draws(NamedTuple):
    """Uniform random numbers in [0, 1) of one picture, in the order they are used."""

    flip: float  # Below `config.augment.flip`: mirrored.
    scale: float
    offset: float  # One for both axes: the window moves on the diagonal alone.


class View(NamedTuple):
    """What a canvas shows of a picture: it is flipped, then resized, then cropped."""

    size: geometry.Size  # Of the picture.
    flipped: bool
    resized: geometry.Size
    corner: tuple[int, int]  # (y, x) of the crop in the resized picture.
    shown: geometry.Size  # Of the crop, at most the canvas.

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) pixels of the canvas in one of the picture."""
        return self.resized[1] / self.size[1], self.resized[0] / self.size[0]


def draw(config: ConfigDict, epoch: int, index: int) -> Draws:
    """The draws of one example in one epoch."""
    return Draws(*crops.uniforms(config.seed, epoch, index, 3, DRAWS).tolist())


def choose(config: ConfigDict, epoch: int, index: int, count: int, most: int) -> list:
    """`most` of `count` objects at random, in their order; all if they are no more."""
    if count <= most:
        return list(range(count))
    ranks = crops.uniforms(config.seed, epoch, index, count, SURPLUS)
    return sorted(np.argsort(ranks)[:most].tolist())


def training_view(
    size: geometry.Size, canvas: geometry.Size, draws: Draws, augment: ConfigDict
) -> View:
    """The view of a training picture.

    Args:
        size: (height, width) of the picture.
        canvas: (height, width).
        draws: of this example in this epoch.
        augment: `flip`, the chance of a mirrored picture, and `scale`, the least and
            the largest ratio of the resized picture to one that just fits the canvas.
    """
    low, high = augment.scale
    scale = low + (high - low) * draws.scale
    ratio = min(scale * side / old for side, old in zip(canvas, size, strict=True))
    # Half to even, as NumPy rounds. Of a very long picture one pixel has to be left.
    resized = tuple(max(1, round(old * ratio)) for old in size)
    room = crops.offset_limits(resized, canvas)
    return View(
        size=tuple(size),
        flipped=draws.flip < augment.flip,
        resized=resized,
        corner=tuple(round(limit * draws.offset) for limit in room.tolist()),
        shown=tuple(map(min, resized, canvas)),
    )


def evaluation_view(size: geometry.Size, canvas: geometry.Size) -> View:
    """The view of a picture that just fits the canvas."""
    ratio = min(side / old for side, old in zip(canvas, size, strict=True))
    resized = tuple(max(1, int(old * ratio + 0.5)) for old in size)
    return View(tuple(size), False, resized, (0, 0), resized)


def resize(pixels: np.ndarray, view: View) -> np.ndarray:
    """[*shown, C] uint8 of a picture [H, W, C], by Pillow's bilinear, antialiased."""
    if view.flipped:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    image = image.resize(view.resized[::-1], Image.Resampling.BILINEAR)
    y, x = view.corner
    height, width = view.shown
    shown = np.asarray(image)[y : y + height, x : x + width]
    return shown.reshape(height, width, -1)


def check(augment: ConfigDict) -> None:
    """Refuses values of `config.augment` that no jitter can be made of."""
    scale = tuple(augment.scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise ValueError(
            f"config.augment.scale={scale}: give the lowest and the highest ratio, "
            "both above 0; 1.0,1.0 switches jitter off."
        )
    if not 0 <= augment.flip <= 1:
        raise ValueError(f"config.augment.flip={augment.flip} is a chance, 0 to 1.")
