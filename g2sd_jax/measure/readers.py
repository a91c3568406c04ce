# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A recipe's files through the pipeline and through Pillow, for `input_speed`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import pipeline, source
from g2sd_jax.data.maps import pairs
from g2sd_jax.data.maps import source as maps
from g2sd_jax.measure import pillow_loop, pillow_pairs
from g2sd_jax.ops import augment


class Both(NamedTuple):
    """A recipe's training split as the pipeline reads it, and as Pillow does."""

    origin: str
    count: int
    theirs: int  # Examples that Pillow has.
    bytes: Callable[[int], int]  # Of the files of an example.
    load: Callable[..., Any]  # (index, flip, rng): Pillow's loop.
    dataset: Callable[[int], Any]  # The pipeline's, of so many workers.
    fidelity: Callable[..., dict[str, float]]  # (dataset, indices): see `distance`.


def of(config: ConfigDict, original: str) -> Both:
    """Reads the recipe's pictures; `original` is that of `input_speed.measure`."""
    return (pairs_of if config.data.source == "maps" else pictures_of)(config, original)


def pictures_of(config: ConfigDict, original: str) -> Both:
    """Reads pictures of a classification recipe."""
    split = config.data.train_split
    ours = theirs = source.files(config, split)
    if original:
        theirs = source.files(
            changed(config, source="folder", path=original, hold_out=0.0), split
        )
    return Both(
        ours.origin,
        ours.count,
        theirs.count,
        bytes=lambda index: len(ours.read(index)),
        load=lambda index, flip, rng: pillow_loop.load(
            theirs.read(index), config, index, flip, rng
        ),
        dataset=lambda workers: pipeline.dataset(
            changed(config, workers=workers), ours, split
        ),
        fidelity=lambda dataset, indices: fidelity(config, ours, dataset, indices),
    )


def pairs_of(config: ConfigDict, original: str) -> Both:
    """Reads pictures with label maps of a segmentation recipe."""
    if original:
        raise ValueError(
            f"--original={original} is for pictures that were prepared; those with "
            "label maps are read as they are. Leave it out."
        )
    split = config.data.train_split
    pictures, stored = pairs.list_pairs(config, split)
    read = lambda index: (pictures.read(index), stored.read(index))

    def apart(dataset, indices):
        batch = dataset.fetch(indices, 0)
        theirs = [
            pillow_pairs.load(*read(int(index)), config, int(index), False)
            for index in batch["index"]
        ]
        images, label_maps = map(np.stack, zip(*theirs, strict=True))
        differ = float((batch["label_map"] != label_maps).mean())
        return distance(batch["image"], images) | dict(labels_differ=differ)

    return Both(
        pictures.origin,
        pictures.count,
        pictures.count,
        bytes=lambda index: sum(map(len, read(index))),
        load=lambda index, flip, _: pillow_pairs.load(
            *read(index), config, index, flip
        ),
        dataset=lambda workers: maps.load(changed(config, workers=workers), split),
        fidelity=apart,
    )


def fidelity(
    config: ConfigDict, files: Any, dataset: Any, indices: np.ndarray
) -> dict[str, float]:
    """Measures the `distance` of the pipeline's crops from Pillow's.

    Args:
        config: the recipe.
        files: of `source.files`.
        dataset: the pipeline's.
        indices: of the examples to compare.
    """
    spec = augment.spec(config, train=False)
    batch = dataset.fetch(indices, 0)
    image = augment.prepare(batch, {}, spec)["image"]
    mean, std = (np.asarray(values) for values in (spec.mean, spec.std))
    image = np.round(255 * (np.asarray(image) * std + mean))
    expected = [
        np.asarray(pillow_loop.cropped(files.read(int(index)), config, int(index)))
        for index in batch["index"]
    ]
    return distance(image, np.reshape(expected, image.shape))


def distance(image: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Computes the mean error in grey levels, and the share of values beyond 8."""
    error = np.abs(np.float32(image) - np.float32(expected))
    return dict(
        mean_error=error.mean().item(), share_beyond_8=(error > 8).mean().item()
    )


def changed(config: ConfigDict, **data: Any) -> ConfigDict:
    """Copies the recipe with other values in `config.data`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(data)
    return config
