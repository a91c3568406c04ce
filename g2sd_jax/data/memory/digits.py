# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's 1797 hand-written digits: real data that needs no download."""

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from sklearn import datasets as samples

from g2sd_jax.data import dataset as datasets

SPLITS = ("train", "val")


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """1198 digits to train on or the 599 held out, independent of the seed."""
    if split not in SPLITS:
        raise ValueError(f"digits have no split {split!r}; use {' or '.join(SPLITS)}.")
    bunch = samples.load_digits()
    # Every third of the digits sorted by class, so that both parts hold each alike.
    held_out = np.zeros(len(bunch.target), bool)
    held_out[np.argsort(bunch.target, kind="stable")[2::3]] = True
    chosen = held_out if split == "val" else ~held_out
    height, width = config.model.image_size
    image = np.stack([enlarge(digit, height, width) for digit in bunch.images[chosen]])
    image = np.repeat(image[..., None], config.model.channels, axis=-1)
    names = tuple(str(name) for name in bunch.target_names)
    return datasets.in_memory(config, image, bunch.target[chosen], names, "digits")


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of digits of a split, and of their classes."""
    dataset = load(config, split)
    return dataset.count, len(dataset.classes)


def enlarge(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a digit [8, 8] of 0..16 to [height, width] uint8."""
    grey = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    # Bilinear: bicubic overshoots at the hard strokes and is clipped to flat halos.
    return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR))
