# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Warnings about the pixels of a data set: nearly black, or far from `data.mean`."""

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import dataset as datasets

EXAMPLES = 16  # That are looked at, spread over the split.
BLACK = 0.125  # Mean plus two standard deviations, of pixels in 0..1, of 12 bits in 16.
SIZES = ("image_size", "size")  # Keys of the part of a canvas that is a picture.
FAR = 1.5  # Distance of the mean from `data.mean`, in units of `data.std`.


def warnings(config: ConfigDict, dataset: datasets.Dataset) -> list[str]:
    """Lines about pictures that no recipe expects; none where pixels look usual."""
    # A stream can only be looked at where it begins.
    count = dataset.count if dataset.stream is None else min(dataset.count, EXAMPLES)
    indices = np.unique(np.linspace(0, count - 1, EXAMPLES).astype(np.int64))
    batch = dataset.fetch(indices)
    image = np.asarray(batch["image"])
    if image.dtype != np.uint8:  # Invented, or augmented already.
        return []
    rows = batch.get("valid", np.ones(len(image), bool))
    sizes = [batch[key] for key in SIZES if key in batch]
    sizes = np.array(sizes[0] if sizes else [image.shape[1:3]] * len(image))
    pixels = [
        picture[:height, :width].reshape(-1, image.shape[-1])  # The rest is padding.
        for picture, (height, width) in zip(image[rows], sizes[rows], strict=True)
    ]
    if not sum(map(len, pixels)):
        return []
    pixels = np.concatenate(pixels).astype(np.float32) / 255
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    listing = ", ".join(f"{value:.3f}" for value in mean)
    if (mean + 2 * std).max() < BLACK:
        return [
            f"WARNING: the pictures are nearly black, pixels of mean ({listing}) in "
            f"0..1, none of {len(pixels)} above {pixels.max():.3f}. Of 16-bit files "
            "the upper eight bits are read: a sensor's 10 or 12 bits have to be "
            "stretched to 16 first."
        ]
    distance = (mean - np.array(config.data.mean)) / np.array(config.data.std)
    if np.abs(distance).max() > FAR:
        return [
            f"WARNING: pixels have the mean ({listing}) in 0..1, but config.data.mean="
            f"{tuple(config.data.mean)} and std={tuple(config.data.std)}: the model "
            f"sees a mean of {distance[np.abs(distance).argmax()]:.1f}, where 0 is "
            "usual. Both keys are of pixels in 0..1, not 0..255."
        ]
    return []
