# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a tar: what is in it, and where the bytes of each lie."""

import collections
import posixpath
import tarfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

from g2sd_jax import errors
from g2sd_jax.data import reading, walk

PACKED = 2**30  # Bytes of a compressed tar, beyond which it is not kept in memory.
UNPACKED = 2 * PACKED  # Bytes that one may unpack to.


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

    def names(self, split: str, others: Collection[str] = ()) -> list[str]:
        """Names of the class folders of a split, as by `beneath`."""
        return list(self.beneath(split, others).folders)

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
