# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Picture files given by path, preprocessed as for evaluation."""

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.data import decoder, encoded, pipeline, reading
from g2sd_jax.data.memory import pictures

IN_MEMORY = ("arrays", "digits", "fake")  # Sources whose pictures the device crops.


def read(config: ConfigDict, paths: Sequence[str]) -> np.ndarray:
    """Reads picture files as `config.data.source` does for evaluation.

    Args:
        config: the recipe.
        paths: of the files.

    Returns:
        [N, H, W, C] uint8.
    """
    files = as_encoded(paths)
    size, channels = config.model.image_size, config.model.channels
    if config.data.source in IN_MEMORY:
        return pictures.decode(files, size, channels)
    decoder.check_channels(channels)
    frames = pipeline.Evaluating(config)
    batch = frames.empty(files.count)
    for row in range(files.count):
        picture = pictures.open_picture(files, row, channels)
        place = lambda row=row, picture=picture: frames.place(
            batch, row, picture, None, row
        )
        pictures.name_failure(files, row, place)
    return batch["image"]


def originals(
    config: ConfigDict, paths: Sequence[str], left_out: Callable[[str], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, pixels [h, w, C] uint8) of each picture at its original size.

    Args:
        config: the recipe.
        paths: of the files.
        left_out: called with one line for each picture that cannot be read.
    """
    files, channels = as_encoded(paths), config.model.channels
    decoder.check_channels(channels)
    for index in range(files.count):
        try:
            picture = decoder.open_picture(files.read(index), channels)
            pixels, _ = picture.cut((0, 0, *picture.size))
        except (OSError, decoder.Unreadable) as error:
            left_out(
                f"{files.name(index)} cannot be decoded as a picture and is left out: "
                f"{error}"
            )
            continue
        yield files.name(index), pixels


def as_encoded(paths: Sequence[str]) -> encoded.Encoded:
    """Random access to the files; refuses paths at which there is none."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ValueError(f"there is no picture {', '.join(missing)}.")
    return encoded.Encoded(
        count=len(paths),
        classes=(),
        labels=None,
        places=list(paths),
        reader=reading.Paths(),
        name=lambda index: paths[index],
        origin="the pictures",
    )
