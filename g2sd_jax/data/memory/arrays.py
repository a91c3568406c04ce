# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that fit into memory: an `.npz`, a folder or a tar of class folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import folder
from g2sd_jax.data.memory import pictures

ACCEPTED = (
    "an .npz with image [N, H, W, C] uint8 and label [N] (or train_image, "
    "train_label, val_image, …), "
) + folder.ACCEPTED


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """One split of `config.data.path`, decoded once into a uint8 array.

    If all pictures share one size that is at least the model's in both directions,
    that is the array's; the device crops and resizes from there. Otherwise every
    picture is resized to cover the model's size and centre-cropped to it.
    """
    path = folder.locate(config, split, (".npz", *folder.TARS), ACCEPTED)
    if path.suffix == ".npz":
        return from_npz(config, path, split)
    files = folder.list_files(config, split)
    if config.data.limit is not None:  # Cut before decoding.
        files = files._replace(count=min(files.count, config.data.limit))
    image = pictures.decode(files, config.model.image_size, config.model.channels)
    labels = None if files.labels is None else files.labels[: files.count]
    dataset = datasets.in_memory(config, image, labels, files.classes, files.origin)
    return dataset._replace(notes=files.notes)


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of pictures of a split, and of its classes."""
    path = folder.locate(config, split, (".npz", *folder.TARS), ACCEPTED)
    if path.suffix != ".npz":
        return folder.count(config, split)
    image, label, names = split_arrays(config, path, split)
    if names or label is None:
        return len(image), len(names)
    return len(image), int(label.max(initial=-1)) + 1


def from_npz(config: ConfigDict, path: Path, split: str) -> datasets.Dataset:
    """One split of an .npz, whose arrays may be prefixed with the split's name."""
    image, label, names = split_arrays(config, path, split)
    image = pictures.fit_to_canvas(image, config.model.image_size)
    return datasets.in_memory(config, image, label, names, str(path))


def split_arrays(
    config: ConfigDict, path: Path, split: str
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Reads one split of an .npz.

    Args:
        config: the recipe.
        path: of the file.
        split: whose name may be a prefix of the arrays' names.

    Returns:
        The pictures [N, H, W, C] uint8, their labels [N] or None, the class names or
        ().
    """
    arrays = read_npz(path)
    prefix = f"{split}_" if f"{split}_image" in arrays else ""
    # One unnamed set must not serve as its own held-out set by accident.
    named = prefix or "{split}" in config.data.path or split == config.data.train_split
    if not named or f"{prefix}image" not in arrays:
        raise ValueError(
            f"{path} has no split {split!r}: its keys are "
            f"{errors.printable(', '.join(sorted(arrays)))}; "
            f"store {split}_image and {split}_label, or one file per split with "
            "{split} in config.data.path, or choose another config.data.eval_split."
        )
    image, label = arrays[f"{prefix}image"], arrays.get(f"{prefix}label")
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
    check_axes(config, image.shape, f"{path}: {prefix}image")
    names = tuple(errors.printable(name) for name in arrays.get("classes", ()))
    return image, label, names


def check_axes(config: ConfigDict, shape: Sequence[int], name: str) -> None:
    """Refuses pictures [N, C, H, W], as PyTorch orders them.

    Args:
        config: the recipe.
        shape: of the pictures.
        name: of their array, for errors.
    """
    channels = config.model.channels
    first, last = shape[1], shape[-1]
    if last != channels and (first <= 4 < last or first == channels < last):
        raise ValueError(
            f"{name} is {list(shape)}, which looks like [N, C, H, W]; store it as "
            "[N, H, W, C]: np.transpose(image, (0, 2, 3, 1))."
        )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, none of which may need pickle."""
    try:
        # NumPy leaves a file that it opened and could not read to the collector.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # Whatever numpy and zipfile make of broken bytes.
        raise ValueError(
            f"{path} cannot be read as an .npz of plain arrays: {error}"
        ) from error
