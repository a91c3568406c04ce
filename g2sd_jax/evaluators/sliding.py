# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any size through a network of one size, window by window.

Only windows go to the device, always equally many of one size, so that one program
serves every picture. Their logits are enlarged, averaged where windows overlap and
resized to the original's size: all of it linear and separable, hence one matrix per
axis, applied on the host. A picture may be looked at in several sizes, and mirrored;
then the probabilities of all looks are averaged.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from g2sd_jax import errors
from g2sd_jax.data import geometry
from g2sd_jax.ops import resize

MODES = ("slide", "whole")
ROWS = 64  # Of an answer that are in memory at a time, with all their classes.


class Plan(NamedTuple):
    """How pictures are cut."""

    mode: str  # slide; whole: each picture is one window
    window: tuple[int, int]  # (height, width) of the network
    stride: tuple[int, int]
    fit: tuple[int, int]  # Shorter and longer side at most, before it is cut.
    scales: tuple[float, ...] = (1.0,)  # Times `fit`: as many looks at a picture.
    flip: bool = False  # Whether it is looked at mirrored, too.

    @property
    def looks(self) -> list[tuple[float, bool]]:
        """(scale, whether mirrored) of each."""
        flips = (False, True) if self.flip else (False,)
        return [(scale, mirrored) for scale in self.scales for mirrored in flips]


def plan(config: ConfigDict) -> Plan:
    """The `Plan` of `config.inference`."""
    inference, window = config.inference, tuple(config.model.image_size)
    errors.one_of("config.inference.mode", inference.mode, MODES)
    stride = tuple(inference.stride)
    if any(step > side for step, side in zip(stride, window, strict=True)):
        raise ValueError(
            f"config.inference.stride={stride} leaves gaps between windows of "
            f"config.model.image_size={window}; use steps of at most that."
        )
    scales = tuple(inference.scales)
    if inference.mode == "whole" and scales != (1.0,):
        raise ValueError(
            f"config.inference.scales={scales} cuts a larger picture into more windows,"
            " but with config.inference.mode=whole each picture is one; use slide."
        )
    return Plan(
        mode=inference.mode,
        window=window,
        stride=stride,
        fit=tuple(inference.fit),
        scales=scales,
        flip=inference.flip,
    )


def fitted(size: tuple[int, int], plan: Plan, scale: float = 1.0) -> tuple[int, int]:
    """(height, width) to which a picture of `size` is resized before it is cut."""
    if plan.mode == "slide":
        return geometry.fit_size(size, geometry.scaled_box(plan.fit, scale))
    factor = min(have / side for have, side in zip(plan.window, size, strict=True))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows along one side begin; the last is shifted back inside."""
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(stride * i + window, size) - window, 0) for i in range(count)]


def merging(size: int, window: int, stride: int, low: int) -> np.ndarray:
    """[size, n * low]: from the logits of n windows to their mean at every pixel."""
    enlarge = resize.linear_weights(low, window)
    begins = starts(size, window, stride)
    matrix, covered = np.zeros((size, len(begins), low)), np.zeros((size, 1, 1))
    for i, begin in enumerate(begins):
        end = min(begin + window, size)
        matrix[begin:end, i] += enlarge[: end - begin]
        covered[begin:end] += 1
    return (matrix / covered).reshape(size, -1)


def cut(image: np.ndarray, plan: Plan) -> dict:
    """The windows of a picture [h, w, C] by their place (row, column).

    Smaller ones, at the edges of a small picture, are not padded yet.
    """
    height, width = plan.window
    rows, columns = (
        starts(size, window, stride)
        for size, window, stride in zip(
            image.shape[:2], plan.window, plan.stride, strict=True
        )
    )
    return {
        (i, j): image[y : y + height, x : x + width]
        for i, y in enumerate(rows)
        for j, x in enumerate(columns)
    }


def merged(
    logits: np.ndarray, size: tuple[int, int], out_size: tuple[int, int], plan: Plan
) -> Iterator[np.ndarray]:
    """Averages windows, and resizes to the original's size.

    Args:
        logits: [rows, columns, h, w, C] of the windows of `cut`.
        size: (height, width) of the picture that was cut.
        out_size: (height, width) wanted.
        plan: the one it was cut by.
    Yields:
        [up to ROWS, width, C] float32, from the top to the bottom of the answer.
    """
    down, across = (
        (resize.linear_weights(old, new) @ merging(old, window, stride, low)).astype(
            np.float32
        )
        for old, new, window, stride, low in zip(
            size, out_size, plan.window, plan.stride, logits.shape[2:4], strict=True
        )
    )
    count, columns, h, w, classes = logits.shape
    stacked = logits.transpose(0, 2, 1, 3, 4).reshape(count * h, -1)
    for first in range(0, len(down), ROWS):
        part = (down[first : first + ROWS] @ stacked).reshape(-1, columns * w, classes)
        yield across @ part


class Scene:
    """A picture and its windows' logits, until all of them have arrived."""

    def __init__(self, example: Mapping, plan: Plan):
        image, self.truth = example["image"], example.get("label_map")
        self._out_size, self._plan = image.shape[:2], plan
        self._sizes, self._logits, self.windows = [], [], {}
        for look, (scale, mirrored) in enumerate(plan.looks):
            size = fitted(self._out_size, plan, scale)
            resized = geometry.resize_image(image, size)
            resized = resized[:, ::-1] if mirrored else resized
            self._sizes.append(size)
            self._logits.append({})
            self.windows |= {(look, *at): w for at, w in cut(resized, plan).items()}

    def add(self, place, logits) -> bool:
        """Stores the logits [h, w, C] of a window; returns whether it was the last."""
        look, *at = place
        self._logits[look][tuple(at)] = logits
        return sum(map(len, self._logits)) == len(self.windows)

    def answer(self) -> np.ndarray:
        """[H, W] uint8 classes, at the size of the picture."""
        strips = zip(*map(self._strips, range(len(self._sizes))), strict=True)
        answer = np.concatenate([best(*looks) for looks in strips])
        self._logits.clear()  # They are large.
        return answer

    def _strips(self, look):
        """Strips of one look, top to bottom: logits, or probabilities if several."""
        logits = in_order(self._logits[look])
        size, out_size = self._sizes[look], self._out_size
        for strip in merged(logits, size, out_size, self._plan):
            if len(self._sizes) == 1:  # The largest logit is the likeliest class.
                yield strip
                continue
            likely = special.softmax(strip, axis=-1)
            yield likely[:, ::-1] if self._plan.looks[look][1] else likely


def in_order(logits: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    """{(row, column): [h, w, C]} -> [rows, columns, h, w, C]."""
    rows, columns = (1 + max(side) for side in zip(*logits, strict=True))
    row = lambda i: np.stack([logits[i, j] for j in range(columns)])
    return np.stack([row(i) for i in range(rows)])


def best(*looks: np.ndarray) -> np.ndarray:
    """[h, w] uint8: the class with the largest sum over all looks [h, w, C]."""
    return sum(looks).argmax(axis=-1).astype(np.uint8)


def padded(
    windows: Sequence[np.ndarray], count: int, plan: Plan, channels: int
) -> dict:
    """A batch of `count` rows of uint8 windows; rows without a window are not valid."""
    image = np.zeros((count, *plan.window, channels), np.uint8)
    size = np.tile(np.int32(plan.window), (count, 1))
    for row, window in enumerate(windows):
        image[row, : window.shape[0], : window.shape[1]] = window
        size[row] = window.shape[:2]
    return dict(image=image, image_size=size, valid=np.arange(count) < len(windows))
