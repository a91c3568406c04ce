# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class folders of picture files, on a disk or inside a tar, as `Encoded`."""

import functools
import os
import tarfile
import weakref
import zlib
from pathlib import Path

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, pipeline

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TARS = (".tar", ".tar.gz", ".tgz")
PACKED = 2**30  # Bytes of a compressed tar, beyond which it is not kept in memory.
ACCEPTED = (
    "a folder SPLIT/CLASS/*.jpg, or CLASS/*.jpg with config.data.hold_out, or "
    "SPLIT/*.jpg with config.data.classes=0, or a .tar, .tar.gz or .tgz of such a "
    "folder; {split} in the path stands for the split"
)

frames = pipeline.Training  # What a training batch is laid out in.


def load(config, split) -> datasets.Dataset:
    """One split of `config.data.path`, decoded as it is needed."""
    return pipeline.dataset(config, listed(config, split), split)


def listed(config, split) -> encoded.Encoded:
    """The files of one split, going round the classes by rank.

    So any `config.data.limit` holds all classes alike. Labels are the sorted names of
    the class folders of the training split. A recipe without classes also takes
    pictures that lie in no class folder.
    """
    path = located(config, split)
    held = opened(path)
    found, beneath = held.classes(config, split)
    origin = f"split {split!r} of {path}"
    if not config.data.classes and not config.data.hold_out:
        every = held.files(split)
        if any("/" not in file for file in every):  # Some lie in no class folder.
            return unlabelled(held, every, f"{path}{held.mark}{split}/", origin)
    if not any(found.values()):
        raise ValueError(
            f"{path} has no pictures {beneath}*{{{','.join(SUFFIXES)}}}; its folders "
            f"are: {', '.join(held.folders()) or 'none'}. Set config.data.train_split "
            "and config.data.eval_split to them, or config.data.hold_out to the share "
            "that evaluates, where there are class folders alone. Pictures without "
            "class folders need config.data.classes=0."
        )
    names = tuple(sorted(found))
    empty = [name for name in names if not found[name]]
    if empty:
        raise ValueError(
            f"{origin}: no pictures (*{{{','.join(SUFFIXES)}}}) in the class folders "
            f"{', '.join(empty)}; fill them, or remove them."
        )
    encoded.check_names(names, origin)
    numbered = config.data.classes and not config.data.class_list  # By the folders.
    if numbered and not config.data.hold_out:
        check_classes(config, names, origin)
    ranked = sorted(
        (rank, label, file)
        for label, name in enumerate(names)
        for rank, file in enumerate(sorted(found[name]))
    )
    files = [f"{names[label]}/{file}" for _, label, file in ranked]
    places = [found[names[label]][file] for _, label, file in ranked]
    top = f"{path}{held.mark}{beneath.removesuffix('CLASS/')}"
    return encoded.Encoded(
        count=len(files),
        classes=names,
        labels=np.array([label for _, label, _ in ranked], np.int32),
        read=lambda index: held.read(places[index]),
        name=lambda index: f"{top}{files[index]}",
        origin=origin,
    )


def unlabelled(held, found, top, origin) -> encoded.Encoded:
    """Pictures of no class, in the order of their paths, however deep they lie."""
    files = sorted(found)
    return encoded.Encoded(
        count=len(files),
        classes=(),
        labels=None,
        read=lambda index: held.read(found[files[index]]),
        name=lambda index: f"{top}{files[index]}",
        origin=origin,
    )


def located(config, split, endings=TARS, accepted=ACCEPTED) -> Path:
    """The folder, or the file of a known ending, that holds a split."""
    given = config.data.path
    path = Path(given.replace("{split}", split)).expanduser()
    if not given or not path.exists():
        raise ValueError(
            f"config.data.path={given!r}: there is no {path if given else 'path'} for "
            f"split {split!r}; accepted: {accepted}."
        )
    if path.is_file() and not path.name.endswith(endings):
        raise ValueError(f"config.data.path={given!r} is not {accepted}.")
    return path


def check_classes(config, names, origin):
    """Refuses a split whose class folders would be numbered unlike the training's."""
    split = config.data.train_split
    try:
        path = located(config, split)
    except ValueError:
        return  # A set that is only judged may come without the other.
    theirs = opened(path).names(config, split)
    differ = sorted(set(theirs) ^ set(names))
    if theirs and differ:
        raise ValueError(
            f"{origin} and split {split!r} differ in their class folders, so that the "
            f"labels would mean different things; only one of them has: "
            f"{', '.join(differ[:10])}{' …' if len(differ) > 10 else ''}. Give both "
            "the same folders."
        )


def parted(config, split, found, splits, where):
    """`found` cut to one side of a split by fraction, the same one in every run.

    Files are ranked by a checksum of their names, so that neither the seed nor the
    order on a disk moves a picture from one side to the other.
    """
    share, named = (
        config.data.hold_out,
        (config.data.train_split, config.data.eval_split),
    )
    if not 0 < share < 1 or split not in named:
        raise ValueError(
            f"config.data.hold_out={share} with split {split!r}: give a share between "
            f"0 and 1, and one of the splits {' and '.join(named)}."
        )
    both = sorted(set(splits) & set(named))
    if both:
        raise ValueError(
            f"config.data.hold_out={share}, but {where} has the folders "
            f"{', '.join(both)}, which are splits already; set it to 0.0."
        )
    kept = {}
    for name, files in found.items():
        ranked = sorted(files, key=lambda f: (zlib.crc32(f"{name}/{f}".encode()), f))
        cut = round(share * len(files))
        chosen = ranked[:cut] if split == config.data.eval_split else ranked[cut:]
        kept[name] = {file: files[file] for file in chosen}
    return kept


def opened(path):
    if path.is_dir():
        return Folder(path)
    told = path.stat()
    return tar(path, told.st_mtime_ns, told.st_size)


@functools.lru_cache(maxsize=2)
def tar(path, _changed, _size):
    """Going through a large tar takes minutes: once for all splits of it."""
    return Tar(path)


class Folder:
    """Pictures on a disk; a place is a path."""

    mark = "/"  # Between its own path and theirs.

    def __init__(self, path):
        self._path = path

    def folders(self):
        inside = self._path.iterdir() if self._path.is_dir() else ()
        found = (entry.name for entry in inside if entry.is_dir())
        return sorted(name for name in found if not hidden(name))

    def names(self, _config, split):
        """Class folders alone: their files need not be listed for that."""
        return Folder(self._path / split).folders()

    def classes(self, config, split):
        """{class: {file: place}} and the layout that was looked for."""
        parting = bool(config.data.hold_out)
        root = self._path if parting else self._path / split
        found = {}
        for name in Folder(root).folders():
            with os.scandir(root / name) as files:
                found[name] = {
                    file.name: file.path
                    for file in files
                    if is_picture(file.name) and file.is_file()
                }
        if parting:
            found = parted(config, split, found, found, self._path)
        return found, "CLASS/" if parting else f"{split}/CLASS/"

    def files(self, top):
        """{path beneath a folder: place} of the pictures in it, however deep."""
        root = self._path / top
        return {
            os.path.relpath(path := os.path.join(folder, name), root): path
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
            if is_picture(name)
        }

    @staticmethod
    def read(place):
        with open(place, "rb") as file:
            return file.read()


class Tar:
    """Pictures inside a tar, read where they lie; a place is (offset, size).

    A compressed tar has no places: its pictures are kept in memory as they are.
    """

    mark = ":"

    def __init__(self, path):
        self._path, self._packed = path, not path.name.endswith(".tar")
        size = path.stat().st_size
        if self._packed and size > PACKED:
            raise ValueError(
                f"{path} holds {size / 2**30:.1f} GiB, compressed: no picture can be "
                "reached without unpacking all before it; gunzip it, and give the .tar."
            )
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._members = list(self._scan())

    def _scan(self):
        """Yields (path, place) of every picture, and (path/, None) of every folder."""
        end = self._path.stat().st_size
        try:
            with tarfile.open(self._path) as members:
                for member in members:
                    name = member.name.removeprefix("./")
                    if member.isdir():
                        yield f"{name}/", None
                    elif member.isfile() and is_picture(name.rpartition("/")[2]):
                        place = member.offset_data, member.size
                        if self._packed:
                            place = members.extractfile(member).read()
                        elif sum(place) > end:
                            raise tarfile.ReadError(f"it ends inside {name}")
                        yield name, place
                    members.members = []  # It would keep a record of each.
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{self._path} cannot be read as a tar: {error}"
            ) from error

    def folders(self):
        parts = (name.split("/")[:-2] for name, place in self._members if place)
        return sorted({"/".join(part) or "." for part in parts})

    def names(self, config, split):
        return sorted(self.classes(config, split)[0])

    def classes(self, config, split):
        """{class: {file: place}} and the layout that was looked for."""
        parting = bool(config.data.hold_out)
        found, above = {}, set()
        for name, place in self._members:
            *top, last, kind, file = ["", "", *name.split("/")]
            if hidden(kind) or (not place if parting else last != split):
                continue
            files = found.setdefault(kind, {})
            if place:
                files[file] = place
                above.add("/".join([*top, last]).strip("/"))
        if parting:
            splits = {each.rpartition("/")[2] for each in above}
            found = parted(config, split, found, splits, self._path)
        if len(above) > 1:
            raise ValueError(
                f"{self._path} holds class folders in several places: "
                f"{', '.join(sorted(above))}; pack one of them."
            )
        return found, "CLASS/" if parting else f"{split}/CLASS/"

    def files(self, top):
        """{path beneath a folder: place} of the pictures in it, however deep."""
        found, above = {}, set()
        for name, place in self._members:
            before, inside, beneath = f"/{name}".partition(
                f"/{top}/".replace("//", "/")
            )
            if place and inside:
                found[beneath] = place
                above.add(before.strip("/") or ".")
        if len(above) > 1:
            raise ValueError(
                f"{self._path} holds {top!r} in several places: "
                f"{', '.join(sorted(above))}; pack one of them."
            )
        return found

    def read(self, place):
        if self._packed:
            return place
        offset, size = place
        return os.pread(self._file, size, offset)


def hidden(name):
    return name.startswith(".")  # Among them macOS's ._picture.jpg.


def is_picture(name):
    return name.lower().endswith(SUFFIXES) and not hidden(name)
