# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that fit into memory: an `.npz`, a folder or a tar of class folders."""

import zipfile

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import folder, pictures

ACCEPTED = (
    "an .npz with image [N, H, W, C] uint8 and label [N] (or train_image, "
    "train_label, val_image, …), "
) + folder.ACCEPTED


def load(config, split) -> datasets.Dataset:
    """One split of `config.data.path`, decoded once, whole, into uint8.

    The canvas is the pictures' own size if they all share one that is at least the
    model's in both directions; the device crops and resizes from there. Otherwise every
    picture is resized to cover the model's size and centre-cropped to it.
    """
    path = folder.located(config, split, (".npz", *folder.TARS), ACCEPTED)
    if path.suffix == ".npz":
        return from_npz(config, path, split)
    held = folder.listed(config, split)
    if config.data.limit is not None:  # Cut before decoding.
        held = held._replace(count=min(held.count, config.data.limit))
    image = pictures.decode(held, config.model.image_size, config.model.channels)
    labels = None if held.labels is None else held.labels[: held.count]
    return datasets.in_memory(config, image, labels, held.classes, held.origin)


def from_npz(config, path, split):
    held = read_npz(path)
    prefix = f"{split}_" if f"{split}_image" in held else ""
    # One unnamed set must not serve as its own held-out set by accident.
    named = prefix or "{split}" in config.data.path or split == config.data.train_split
    if not named or f"{prefix}image" not in held:
        raise ValueError(
            f"{path} has no split {split!r}: its keys are {', '.join(sorted(held))}; "
            f"store {split}_image and {split}_label, or one file per split with "
            "{split} in config.data.path, or choose another config.data.eval_split."
        )
    image, label = held[f"{prefix}image"], held.get(f"{prefix}label")
    if image.dtype != np.uint8 or image.ndim not in (3, 4):
        raise ValueError(
            f"{path}: {prefix}image is {image.dtype} {list(image.shape)}; it has to be "
            "uint8 [N, H, W, C] or [N, H, W], of values 0..255."
        )
    if label is not None and (
        label.shape != image.shape[:1] or not np.issubdtype(label.dtype, np.integer)
    ):
        raise ValueError(
            f"{path}: {prefix}label is {label.dtype} {list(label.shape)}; {len(image)} "
            f"pictures need integers [{len(image)}]."
        )
    image = image[..., None] if image.ndim == 3 else image
    names = tuple(str(name) for name in held.get("classes", ()))
    image = pictures.on_canvas(image, config.model.image_size)
    return datasets.in_memory(config, image, label, names, str(path))


def read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as an .npz of plain arrays: {error}"
        ) from error
