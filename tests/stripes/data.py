# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Invented pictures of stripes, and the distance between two directions."""

import numpy as np

HALF_TURN = 180.0  # Degrees after which stripes look the same.
FREQUENCIES = (1.0, 4.0)  # Cycles across the longer side, uniform.


def make(
    rng: np.random.Generator, size: tuple[int, int], channels: int, classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A fake example: `stripe` [2] is the direction in degrees and the frequency."""
    degrees = HALF_TURN * rng.integers(classes) / classes
    frequency = rng.uniform(*FREQUENCIES)
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    radians = np.deg2rad(degrees)
    across = rows * np.sin(radians) + columns * np.cos(radians)
    wave = np.sin(2 * np.pi * (frequency * across + rng.random()))
    image = np.repeat((128 + 60 * wave)[..., None], channels, axis=-1)
    example = {
        "image": image.astype(np.uint8),
        "stripe": np.array([degrees, frequency], np.float32),
    }
    return example, example


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distance in degrees, 0..90, of directions in degrees."""
    apart = np.abs(a - b) % HALF_TURN
    return np.minimum(apart, HALF_TURN - apart)
