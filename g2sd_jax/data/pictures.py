# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class folders of picture files, decoded with Pillow into one uint8 array."""

import collections
import functools
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from concurrent import futures
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MODES = {1: "L", 3: "RGB"}  # Channels -> Pillow's name.
ORIENTATION = 0x0112  # The EXIF tag; 5 to 8 exchange height and width.


class Entry(NamedTuple):
    name: str
    label: int
    read: Callable  # () -> bytes of the file


def from_folder(root, split):
    """Entries and class names of `root/split/class/*`."""
    folders = [folder for folder in root.glob(f"{split}/*") if folder.is_dir()]
    found = {
        folder.name: {
            file.name: (str(file), file.read_bytes)
            for file in filter(is_picture, folder.iterdir())
        }
        for folder in folders
        if not hidden(folder)
    }
    splits = [folder.name for folder in root.iterdir() if folder.is_dir()]
    return numbered(found, root, split, splits)


def from_tar(path, split):
    """Entries and class names of a tar that holds `split/class/*`; kept compressed."""
    found, splits = collections.defaultdict(dict), set()
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = PurePosixPath(member.name)
                if not (member.isfile() and is_picture(file) and len(file.parts) > 2):
                    continue
                splits.add(file.parts[-3])
                if file.parts[-3] == split:
                    read = functools.partial(bytes, tar.extractfile(member).read())
                    found[file.parts[-2]][file.name] = (f"{path}:{file}", read)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a tar: {error}") from error
    return numbered(found, path, split, splits)


def hidden(path):
    return path.name.startswith(".")  # Among them macOS's ._picture.jpg.


def is_picture(path):
    return path.suffix.lower() in SUFFIXES and not hidden(path)


def numbered(found, origin, split, splits):
    """Labels are the sorted folder names; pictures go round the classes by rank."""
    if not any(found.values()):
        raise ValueError(
            f"{origin} has no pictures {split}/CLASS/*{{{','.join(SUFFIXES)}}}; its "
            f"splits are: {', '.join(sorted(splits)) or 'none'}. Set "
            "config.data.train_split and config.data.eval_split to them."
        )
    names = tuple(sorted(found))
    ranked = [
        (rank, label, *found[name][file])
        for label, name in enumerate(names)
        for rank, file in enumerate(sorted(found[name]))
    ]
    ranked.sort(key=lambda row: row[:2])
    return [Entry(name, label, read) for _, label, name, read in ranked], names


def decode(entries, image_size, channels):
    """[N, H, W, C] uint8 of all entries, on the canvas `arrays.load` describes."""
    if channels not in MODES:
        raise ValueError(
            f"config.model.channels={channels}: picture files are read with 1 (grey) "
            "or 3 (RGB) channels; store others as an .npz."
        )
    with futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        # Headers first, so that big pictures are never held all at their own size.
        sizes = set(pool.map(lambda entry: opened(entry, oriented_size), entries))
        canvas = canvas_size(sizes, image_size)

        def upright(image):
            image = to_mode(ImageOps.exif_transpose(image), MODES[channels])
            return np.asarray(fit(image, canvas)).reshape(*canvas, channels)

        pixels = np.empty((len(entries), *canvas, channels), np.uint8)
        decoded = pool.map(lambda entry: opened(entry, upright), entries)
        for row, picture in enumerate(decoded):
            pixels[row] = picture
    return pixels


def on_canvas(image, image_size):
    """The same rule for an array [N, H, W, C] uint8 that is decoded already."""
    canvas = canvas_size({image.shape[1:3]}, image_size)
    if image.shape[1:3] == canvas:
        return image
    planes = np.moveaxis(image, -1, 1).reshape(-1, *image.shape[1:3])
    fitted = [fit(Image.fromarray(plane), canvas) for plane in planes]
    fitted = np.stack(list(map(np.asarray, fitted)))
    return np.moveaxis(fitted.reshape(len(image), -1, *canvas), 1, -1)


def canvas_size(sizes, image_size):
    height, width = image_size
    if len(sizes) == 1:
        [own] = sizes
        if own[0] >= height and own[1] >= width:
            return own
    return (height, width)


def opened(entry, use):
    """`use(image)` of the entry's picture."""
    try:
        with Image.open(io.BytesIO(entry.read())) as image:
            return use(image)
    except Exception as error:  # Pillow raises some ten types for broken files.
        raise ValueError(
            f"{entry.name} cannot be decoded as a picture ({error}); repair or remove "
            "it."
        ) from error


def oriented_size(image):
    """(height, width) once the picture is turned as its EXIF tag says."""
    turned = image.getexif().get(ORIENTATION, 1) >= 5
    return image.size if turned else image.size[::-1]


def to_mode(image, mode):
    if image.mode.startswith("I"):  # 16-bit grey; Pillow itself would clip it at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # A palette may hold it; Pillow warns otherwise.
    return image.convert(mode)


def fit(image, canvas):
    """Pillow's image resized to cover the canvas, and centre-cropped to it."""
    height, width = canvas
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    # Rounding may leave the side that fits exactly a hair outside; Pillow refuses that.
    left = max(0.0, (image.width - width * scale) / 2)
    top = max(0.0, (image.height - height * scale) / 2)
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
