# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What `bench_input` compares: a recipe's files through the pipeline and Pillow."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from g2sd_jax.data import maps, pairs, pipeline, source
from g2sd_jax.ops import augment
from g2sd_jax.tools import pillow_loop, pillow_pairs


class Both(NamedTuple):
    """A recipe's training split as the pipeline reads it, and as Pillow does."""

    origin: str
    count: int
    theirs: int  # Examples that Pillow has.
    bytes: Callable  # index -> of its files
    load: Callable  # (index, flip, rng): Pillow's loop
    dataset: Callable  # workers -> the pipeline's
    fidelity: Callable  # (dataset, indices) -> how far apart their pixels are


def of(config, original: str) -> Both:
    """Those of the recipe; `original` as for `bench_input.measure`."""
    return (pairs_of if config.data.source == "maps" else pictures_of)(config, original)


def pictures_of(config, original: str) -> Both:
    split = config.data.train_split
    held = theirs = source.files(config, split)
    if original:
        theirs = source.files(
            changed(config, source="folder", path=original, hold_out=0.0), split
        )
    return Both(
        held.origin,
        held.count,
        theirs.count,
        bytes=lambda index: len(held.read(index)),
        load=lambda index, flip, rng: pillow_loop.load(
            theirs.read(index), config, index, flip, rng
        ),
        dataset=lambda workers: pipeline.dataset(
            changed(config, workers=workers), held, split
        ),
        fidelity=lambda dataset, indices: fidelity(config, held, dataset, indices),
    )


def pairs_of(config, original: str) -> Both:
    """The same of pictures with label maps."""
    if original:
        raise ValueError(
            f"--original={original} is for pictures that were prepared; those with "
            "label maps are read as they are. Leave it out."
        )
    split = config.data.train_split
    pictures, stored = pairs.listed(config, split)
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


def fidelity(config, held, dataset, indices) -> dict:
    """The `distance` of the pipeline's crops from Pillow's."""
    spec = augment.spec(config, train=False)
    batch = dataset.fetch(indices, 0)
    image = augment.prepare(batch, {}, spec)["image"]
    mean, std = (np.asarray(each) for each in (spec.mean, spec.std))
    image = np.round(255 * (np.asarray(image) * std + mean))
    expected = [
        np.asarray(pillow_loop.cropped(held.read(int(index)), config, int(index)))
        for index in batch["index"]
    ]
    return distance(image, np.reshape(expected, image.shape))


def distance(image, expected) -> dict:
    """Mean error in grey levels, and the share of values beyond 8."""
    error = np.abs(np.float32(image) - np.float32(expected))
    return dict(
        mean_error=error.mean().item(), share_beyond_8=(error > 8).mean().item()
    )


def changed(config, **data):
    """The recipe with other keys of `config.data`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(data)
    return config
