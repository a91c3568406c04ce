# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class folders of picture files, on a disk or inside a tar."""

import collections
import functools
import posixpath
import tarfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, pipeline, reading, walk

TARS = (".tar", ".tar.gz", ".tgz")
PACKED = 2**30  # Bytes of a compressed tar, beyond which it is not kept in memory.
UNPACKED = 2 * PACKED  # Bytes that one may unpack to.
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
    config: ConfigDict, split: str, root: "Folder | Tar", path: Path
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
    root: "Folder | Tar",
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
    training_names = open_root(path).names(config, split)
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


def open_root(path: Path) -> "Folder | Tar":
    """Opens a folder, or a tar, which is scanned once for all splits in it."""
    if path.is_dir():
        return Folder(path)
    stat = path.stat()
    return open_tar(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def open_tar(path: Path, _changed: int, _size: int) -> "Tar":
    """Opens a tar unless it is open already: scanning a large one takes minutes."""
    return Tar(path)


class Folder:
    """Pictures on a disk; a place is a path."""

    separator = "/"  # Between the path of the folder and that of a picture in it.
    reader = reading.Paths()

    def __init__(self, path: Path):
        self._path = path

    def folders(self) -> list[str]:
        """Names of the folders in it, for errors."""
        return list(walk.class_folders(self._path))

    def names(self, config: ConfigDict, split: str) -> list[str]:
        """Names of the class folders, whose files need not be listed for that."""
        return list(walk.class_folders(self._path / split))

    def beneath(self, top: str, _others: Collection[str] = ()) -> walk.Listing:
        """The pictures in a folder of it, however deep."""
        return walk.list_folder(self._path / top)

    def flat(self, listing: walk.Listing) -> list[str]:
        """The paths of a listing of all, as seen from where the pictures lie."""
        return list(listing.files)


class Tar:
    """Pictures inside a tar, read where they lie; a place is a `reading.Span`.

    A compressed tar has no such places: there a place is the bytes, in memory.
    """

    separator = ":"

    def __init__(self, path: Path):
        self._path, self._packed = path, not path.name.endswith(".tar")
        size = path.stat().st_size
        if self._packed and size > PACKED:
            raise ValueError(
                f"{path} holds {size / 2**30:.1f} GiB, compressed: no picture can be "
                "reached without unpacking all before it; gunzip it, and give the .tar."
            )
        self.reader = reading.Inline() if self._packed else reading.Spans([path])
        self._pictures, self._folders = {}, []  # {path: place}, and paths.
        self._others, self._links = [], []  # Paths of what is not read.
        self._scan()
        self._drop_hidden()

    def _scan(self) -> None:
        """Lists what is in it, by paths whose control characters are escaped."""
        end = self._path.stat().st_size
        try:
            with tarfile.open(self._path) as members:
                for member in members:
                    name = posixpath.normpath(errors.printable(member.name))
                    name = name.lstrip("/")
                    if self._packed:
                        self._check_unpacked(member)
                    if member.isdir():
                        self._folders.append(name)
                    elif member.islnk():  # A second name of a member before it.
                        target = posixpath.normpath(errors.printable(member.linkname))
                        if place := self._pictures.get(target.lstrip("/")):
                            self._pictures[name] = place
                        else:
                            self._links.append(name)
                    elif member.issym():
                        self._links.append(name)
                    elif member.isfile() and walk.is_picture(posixpath.basename(name)):
                        place = 0, member.offset_data, member.offset_data + member.size
                        if self._packed:
                            place = members.extractfile(member).read()
                        elif place[-1] > end:
                            raise tarfile.ReadError(f"it ends inside {name}")
                        self._pictures[name] = place
                    elif member.isfile():
                        self._others.append(name)
                    members.members = []  # It would keep a record of each.
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{self._path} cannot be read as a tar: {error}"
            ) from error

    def _check_unpacked(self, member: tarfile.TarInfo) -> None:
        """Refuses a compressed tar that grows beyond what memory should take."""
        if member.offset_data + member.size > UNPACKED:
            raise ValueError(
                f"{self._path} unpacks to more than {UNPACKED / 2**30:.1f} GiB (at "
                f"{errors.printable(member.name)}), and all of it would lie in memory; "
                "gunzip it, and give the .tar."
            )

    def _drop_hidden(self) -> None:
        """Leaves hidden paths out; a hidden folder around everything hides nothing."""
        parents = [posixpath.dirname(name) for name in self._pictures]
        around = len(common_folder(parents))

        def is_visible(name):
            return not any(map(walk.is_hidden, name[around:].split("/")))

        self._pictures = {
            name: place for name, place in self._pictures.items() if is_visible(name)
        }
        self._folders, self._others, self._links = (
            [name for name in names if is_visible(name)]
            for names in (self._folders, self._others, self._links)
        )

    def folders(self) -> list[str]:
        """Paths of the folders above its class folders, for errors."""
        parts = (name.split("/")[:-2] for name in self._pictures)
        return sorted({"/".join(part) or "." for part in parts})

    def names(self, config: ConfigDict, split: str) -> list[str]:
        """Names of the class folders of a split."""
        return list(self.beneath(split, splits_of(config) - {split}).folders)

    def beneath(self, top: str, others: Collection[str] = ()) -> walk.Listing:
        """The pictures in a folder of it, however deep.

        Args:
            top: path of the folder from wherever it lies in the tar; "" is the one
                that holds the class folders, or the pictures.
            others: names of folders in which `top` is not looked for.
        """
        parents = [posixpath.dirname(name) for name in self._pictures]
        base = common_folder([posixpath.dirname(parent) for parent in parents])
        around = len(common_folder(parents))

        def split_path(name):
            """(the folder above, the path beneath `top`), or None."""
            if not top:
                inside = not base or f"{name}/".startswith(f"{base}/")
                return (base, name[len(base) :].lstrip("/")) if inside else None
            before, inside, beneath = f"/{name}".partition(f"/{top}/")
            if not inside or set(before[around:].split("/")) & set(others):
                return None
            return f"{before}/{top}".strip("/"), beneath

        files, above, folders = {}, set(), set()
        for name, place in self._pictures.items():
            if parts := split_path(name):
                above.add(parts[0])
                files[parts[1]] = place
                if "/" in parts[1]:
                    folders.add(parts[1].partition("/")[0])
        if len(above) > 1:
            raise ValueError(
                f"{self._path} holds {top!r} in several places: "
                f"{', '.join(sorted(above))}; pack one of them."
            )
        for name in self._folders:
            if (parts := split_path(name)) and parts[1]:
                folders.add(parts[1].partition("/")[0])
        passed = collections.Counter(
            walk.ending(name)
            for name in self._others
            if split_path(name) and walk.ending(name) not in walk.TEXTS
        )
        links = tuple(name for name in self._links if split_path(name))
        return walk.Listing(files, tuple(sorted(folders)), passed, links)

    def flat(self, listing: walk.Listing) -> list[str]:
        """The paths of a listing of all, as seen from where the pictures lie."""
        around = common_folder([posixpath.dirname(name) for name in listing.files])
        return [name[len(around) :].lstrip("/") for name in listing.files]


def common_folder(folders: Sequence[str]) -> str:
    """The deepest folder that all relative paths of folders lie in, or are."""
    return posixpath.commonpath(folders) if folders else ""
