# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that fit into memory: an `.npz`, a folder or a tar of class folders."""

import zipfile
from pathlib import Path

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import pictures

TARS = (".tar", ".tar.gz", ".tgz")
ACCEPTED = (
    "an .npz with image [N, H, W, C] uint8 and label [N] (or train_image, "
    "train_label, val_image, …), a folder SPLIT/CLASS/*.jpg, or a .tar, .tar.gz or "
    ".tgz of such a folder; {split} in the path stands for the split"
)


def load(config, split) -> datasets.Dataset:
    """One split of `config.data.path`, decoded once, whole, into uint8.

    The canvas is the pictures' own size if they all share one that is at least the
    model's in both directions; the device crops and resizes from there. Otherwise every
    picture is resized to cover the model's size and centre-cropped to it.
    """
    given = config.data.path
    path = Path(given.replace("{split}", split)).expanduser()
    if not given or not path.exists():
        raise ValueError(
            f"config.data.path={given!r}: there is no {path if given else 'path'} for "
            f"split {split!r}; accepted: {ACCEPTED}."
        )
    if path.is_dir():
        entries, names = pictures.from_folder(path, split)
    elif path.name.endswith(TARS):
        entries, names = pictures.from_tar(path, split)
    elif path.suffix == ".npz":
        return from_npz(config, path, split)
    else:
        raise ValueError(f"config.data.path={given!r} is not {ACCEPTED}.")
    # Cut before decoding; the pictures go round the classes, so any cut holds all.
    entries = entries[: config.data.limit]
    image = pictures.decode(entries, config.model.image_size, config.model.channels)
    label = np.array([entry.label for entry in entries])
    return datasets.in_memory(config, image, label, names, str(path))


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
