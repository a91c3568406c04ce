# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class folders of picture files, on a disk or inside a tar."""

import functools
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, pipeline, reading, tar, walk

TARS = (".tar", ".tar.gz", ".tgz")
ACCEPTED = (
    "a folder SPLIT/CLASS/*.jpg, or CLASS/*.jpg with config.data.hold_out, or "
    "SPLIT/*.jpg with config.data.classes=0, or a .tar, .tar.gz or .tgz of such a "
    "folder; {split} in the path stands for the split"
)

FilesByClass = dict[str, dict[str, walk.Place]]  # {class: {file: place}}

frames = pipeline.Training  # The layout of a training batch.


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """One split of `config.data.path`, decoded on demand."""
    return pipeline.dataset(config, list_files(config, split), split)


def list_files(config: ConfigDict, split: str) -> encoded.Encoded:
    """The files of one split: the first of every class, then the second, and so on.

    So any `config.data.limit` takes equally many of each class. Labels number the
    sorted names of the training split's class folders. A recipe without classes also
    takes pictures that lie in no class folder.
    """
    path = locate(config, split)
    root = open_root(path)
    top = "" if config.data.hold_out else split
    listing = root.beneath(top, splits_of(config) - {split})
    origin = f"split {split!r} of {path}"
    notes = list(walk.notes(listing, origin))
    if not config.data.classes:  # 0, or None: not known yet.
        unsplit = walk.Listing({})
        if not listing.files and not config.data.hold_out:
            unsplit, lines = without_splits(config, split, root, path)
            if unsplit.files:
                top, listing, notes = "", unsplit, lines
        in_folders = ["/" in file for file in listing.files]
        if config.data.classes is None:  # Class folders are what their names say.
            unlabelled = in_folders and not any(in_folders)
        else:
            unlabelled = not all(in_folders)
        if unlabelled or unsplit.files:  # Some lie in no class folder.
            places = listing.files
            if config.data.hold_out:
                everything = {"": places}
                places = hold_out(config, split, everything, listing.folders, path)[""]
            above = f"{path}{root.separator}{top}{'/' if top else ''}"
            return list_unlabelled(root, places, above, origin, notes)
    layout = "CLASS/" if config.data.hold_out else f"{split}/CLASS/"
    by_class, more = group_by_class(listing, origin)
    notes += more
    if not any(by_class.values()):
        raise ValueError(
            f"{path} has no pictures {layout}*{{{','.join(walk.SUFFIXES)}}}; its "
            f"folders are: {', '.join(root.folders()) or 'none'}. Set "
            "config.data.train_split and config.data.eval_split to them, or "
            "config.data.hold_out to the share that evaluates, where there are class "
            "folders alone. Pictures without class folders need config.data.classes=0."
            + "".join(f" {note}" for note in notes)
        )
    empty = sorted(name for name in by_class if not by_class[name])
    if empty:
        raise ValueError(
            f"{origin}: no pictures (*{{{','.join(walk.SUFFIXES)}}}) in the class "
            f"folders {', '.join(empty)}; fill them, or remove them."
            + "".join(f" {note}" for note in notes)
        )
    if config.data.hold_out:
        by_class = hold_out(config, split, by_class, listing.folders, path)
    above = f"{path}{root.separator}{layout.removesuffix('CLASS/')}"
    names = tuple(sorted(by_class))
    encoded.check_names(names, origin)
    numbered = (
        config.data.classes != 0 and not config.data.class_list
    )  # By the folders.
    if numbered and not config.data.hold_out:
        check_classes(config, names, origin)
    ranked = sorted(
        (rank, label, file)
        for label, name in enumerate(names)
        for rank, file in enumerate(sorted(by_class[name]))
    )
    files = [f"{names[label]}/{file}" for _, label, file in ranked]
    places = [by_class[names[label]][file] for _, label, file in ranked]
    return encoded.Encoded(
        count=len(files),
        classes=names,
        labels=np.array([label for _, label, _ in ranked], np.int32),
        places=places,
        reader=root.reader,
        name=lambda index: f"{above}{files[index]}",
        origin=origin,
        notes=tuple(notes),
    )


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of pictures of a split, and of its class folders."""
    files = list_files(config, split)
    return files.count, len(files.classes)


def splits_of(config: ConfigDict) -> set[str]:
    """The names of the training and of the evaluation split."""
    return {config.data.train_split, config.data.eval_split}


def group_by_class(
    listing: walk.Listing, origin: str
) -> tuple[FilesByClass, list[str]]:
    """The files by the first folder of their paths, however deep they lie in it.

    Args:
        listing: of a split.
        origin: what a note calls it.

    Returns:
        The files of each class, and lines about pictures that lie elsewhere.
    """
    by_class = {name: {} for name in listing.folders}
    loose, deeper, notes = [], [], []
    for path, place in listing.files.items():
        name, slash, file = path.partition("/")
        if not slash:
            loose.append(path)
            continue
        by_class.setdefault(name, {})[file] = place
        if "/" in file:
            deeper.append(path)
    if loose:
        notes.append(
            f"{origin}: passed over {len(loose)} pictures that lie in no class folder: "
            f"{errors.shorten_list(loose, most=walk.NAMED)}."
        )
    if deeper:
        notes.append(
            f"{origin}: {len(deeper)} of {len(listing.files)} pictures lie deeper than "
            f"in their class folder, such as {min(deeper)}; the first folder is taken "
            "as the class."
        )
    return by_class, notes


def without_splits(
    config: ConfigDict, split: str, root: "Folder | tar.Tar", path: Path
) -> tuple[walk.Listing, list[str]]:
    """Pictures without labels in a folder that has no splits; none where it has.

    Args:
        config: the recipe.
        split: the split that is asked for.
        root: the folder or tar.
        path: of it, for errors.

    Returns:
        The listing, and lines to be printed.
    """
    listing = root.beneath("")
    flat = any("/" not in file for file in root.flat(listing))
    if not flat or any(root.beneath(name).files for name in splits_of(config)):
        return walk.Listing({}), []
    if split != config.data.train_split and "{split}" not in config.data.path:
        raise ValueError(
            f"{path} has no folder {split!r}, and all its pictures are trained on: set "
            "config.data.hold_out to the share of them that evaluates."
        )
    notes = [
        f"{path} has no folder {split!r}: all of its {len(listing.files)} pictures are "
        "taken.",
        *walk.notes(listing, str(path)),
    ]
    return listing, notes


def list_unlabelled(
    root: "Folder | tar.Tar",
    places: Mapping[str, walk.Place],
    above: str,
    origin: str,
    notes: Sequence[str],
) -> encoded.Encoded:
    """Pictures of no class, in the order of their paths, however deep they lie.

    Args:
        root: the folder or tar.
        places: by path.
        above: what an error puts before a path.
        origin: what an error calls all of them.
        notes: lines to be printed.
    """
    files = sorted(places)
    return encoded.Encoded(
        count=len(files),
        classes=(),
        labels=None,
        places=[places[file] for file in files],
        reader=root.reader,
        name=lambda index: f"{above}{files[index]}",
        origin=origin,
        notes=tuple(notes),
    )


def locate(
    config: ConfigDict,
    split: str,
    endings: tuple[str, ...] = TARS,
    accepted: str = ACCEPTED,
) -> Path:
    """The folder or file at `config.data.path` that holds a split.

    Args:
        config: the recipe.
        split: replaces `{split}` in the path.
        endings: of the files that the source reads.
        accepted: what an error lists as accepted.
    """
    path_pattern = config.data.path
    path = Path(path_pattern.replace("{split}", split))
    if not path_pattern or not path.exists():
        raise ValueError(
            f"config.data.path={path_pattern!r}: there is no "
            f"{path if path_pattern else 'path'} for split {split!r}; accepted: "
            f"{accepted}."
        )
    if path.is_file() and not path.name.endswith(endings):
        raise ValueError(f"config.data.path={path_pattern!r} is not {accepted}.")
    return path


def check_classes(config: ConfigDict, names: Sequence[str], origin: str) -> None:
    """Refuses a split whose class folders differ from the training split's.

    Args:
        config: the recipe.
        names: of the split's class folders.
        origin: what an error calls the split.
    """
    split = config.data.train_split
    try:
        path = locate(config, split)
    except ValueError:
        return  # A set for evaluation alone may come without the training split.
    training_names = open_root(path).names(split, splits_of(config) - {split})
    differing = set(training_names) ^ set(names)
    if training_names and differing:
        hint = "Give both the same folders."
        if len(names) == 1 < len(training_names) and not set(names) <= {
            *training_names
        }:
            hint = (
                f"Its pictures all lie in one folder, {names[0]}, which is no class: "
                f"move each into a folder of its class, SPLIT/CLASS/*.jpg (a list "
                "beside them may say which)."
            )
        raise ValueError(
            f"{origin} and split {split!r} differ in their class folders, so that the "
            f"labels would mean different things; only one of them has: "
            f"{errors.shorten_list(differing, most=10)}. {hint}"
        )


def hold_out(
    config: ConfigDict,
    split: str,
    by_class: FilesByClass,
    folders: Collection[str],
    path: Path,
) -> FilesByClass:
    """One side of `config.data.hold_out`, the same files in every run.

    Files are ranked by a checksum of their names, so that neither the seed nor the
    order on a disk moves a picture from one side to the other. A class of two pictures
    or more has one on either side at least; a single one trains.

    Args:
        config: the recipe.
        split: `config.data.train_split` or `config.data.eval_split`.
        by_class: all files.
        folders: names that must not be splits already.
        path: of the set, for errors.
    """
    share = config.data.hold_out
    sides = config.data.train_split, config.data.eval_split
    if not 0 < share < 1 or split not in sides:
        raise ValueError(
            f"config.data.hold_out={share} with split {split!r}: give a share between "
            f"0 and 1, and one of the splits {' and '.join(sides)}."
        )
    split_folders = sorted(set(folders) & set(sides))
    if split_folders:
        raise ValueError(
            f"config.data.hold_out={share}, but {path} has the folders "
            f"{', '.join(split_folders)}, which are splits already; set it to 0.0."
        )
    side = {}
    for name, files in by_class.items():
        ranked = sorted(files, key=lambda f: (zlib.crc32(f"{name}/{f}".encode()), f))
        cut = max(0, min(max(1, round(share * len(files))), len(files) - 1))
        chosen = ranked[:cut] if split == config.data.eval_split else ranked[cut:]
        side[name] = {file: files[file] for file in chosen}
    return side


def hold_out_files(
    config: ConfigDict, split: str, names: Collection[str], keys: Sequence[str]
) -> set[str]:
    """One side of `config.data.hold_out` of pictures that lie in no class folders.

    The same as pictures without labels have in the folder that `names` are paths in.

    Args:
        config: the recipe.
        split: `config.data.train_split` or `config.data.eval_split`.
        names: paths of all pictures.
        keys: of `config.data`, which then name one split.
    """
    for key in ("path", *keys):
        if "{split}" in config.data[key]:
            raise ValueError(
                f"config.data.hold_out={config.data.hold_out}, but config.data.{key}="
                f"{config.data[key]!r} has {{split}} in it: there are splits already; "
                "set config.data.hold_out to 0.0."
            )
    everything = {"": dict.fromkeys(names, "")}
    return set(hold_out(config, split, everything, (), Path(config.data.path))[""])


def open_root(path: Path) -> "Folder | tar.Tar":
    """Opens a folder, or a tar, which is scanned once for all splits in it."""
    if path.is_dir():
        return Folder(path)
    stat = path.stat()
    return open_tar(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def open_tar(path: Path, _changed: int, _size: int) -> tar.Tar:
    """Opens a tar unless it is open already: scanning a large one takes minutes."""
    return tar.Tar(path)


class Folder:
    """Pictures on a disk; a place is a path."""

    separator = "/"  # Between the path of the folder and that of a picture in it.
    reader = reading.Paths()

    def __init__(self, path: Path):
        self._path = path

    def folders(self) -> list[str]:
        """Names of the folders in it, for errors."""
        return list(walk.class_folders(self._path))

    def names(self, split: str, _others: Collection[str] = ()) -> list[str]:
        """Names of the class folders, whose files need not be listed for that."""
        return list(walk.class_folders(self._path / split))

    def beneath(self, top: str, _others: Collection[str] = ()) -> walk.Listing:
        """The pictures in a folder of it, however deep."""
        return walk.list_folder(self._path / top)

    def flat(self, listing: walk.Listing) -> list[str]:
        """The paths of a listing of all, as seen from where the pictures lie."""
        return list(listing.files)
