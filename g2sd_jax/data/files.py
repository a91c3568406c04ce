# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Picture files named one by one, made ready as evaluation makes its own ready."""

import os
from collections.abc import Callable
from pathlib import Path

from g2sd_jax.data import decoder, encoded, pictures, pipeline

IN_MEMORY = ("arrays", "digits", "fake")  # Sources whose canvas the device crops.


def read(config, paths):
    """[N, H, W, C] uint8, by the rule of `config.data.source`.

    Args:
        config: the whole recipe.
        paths: of the files.
    """
    held = named(paths)
    size, channels = config.model.image_size, config.model.channels
    if config.data.source in IN_MEMORY:
        return pictures.decode(held, size, channels)
    decoder.check_channels(channels)
    frames = pipeline.Evaluating(config)
    batch = frames.empty(held.count)
    for row in range(held.count):
        picture = pictures.opened(held, row, channels)
        place = lambda row=row, picture=picture: frames.place(
            batch, row, picture, None, row
        )
        pictures.named(held, row, place)
    return batch["image"]


def originals(config, paths, left_out: Callable[[str], None]):
    """Yields each picture's path, and it whole, [h, w, C] uint8 at its own size.

    Args:
        config: the whole recipe.
        paths: of the files.
        left_out: told, in a line, of each picture that can not be read.
    """
    held, channels = named(paths), config.model.channels
    decoder.check_channels(channels)
    for index in range(held.count):
        try:
            picture = decoder.opened(held.read(index), channels)
            pixels, _ = picture.cut((0, 0, *picture.size))
        except (OSError, decoder.Unreadable) as error:
            left_out(
                f"{held.name(index)} cannot be decoded as a picture and is left out: "
                f"{error}"
            )
            continue
        yield held.name(index), pixels


def named(paths) -> encoded.Encoded:
    """The files as what a source lists; refuses those that are not there."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ValueError(f"there is no picture {', '.join(missing)}.")
    return encoded.Encoded(
        count=len(paths),
        classes=(),
        labels=None,
        read=lambda index: Path(paths[index]).read_bytes(),
        name=lambda index: paths[index],
        origin="the pictures",
    )
