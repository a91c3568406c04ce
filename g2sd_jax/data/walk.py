# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder or a tar are pictures: what is hidden, read, passed over.

One rule for every source: hidden files and folders are skipped without a word; a link
is followed unless what it leads to is listed already; files of other endings are
counted, so that `notes` can say so.
"""

import collections
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from PIL import features

from g2sd_jax import errors
from g2sd_jax.data import reading

HAS_AVIF = "avif" in features.modules and features.check("avif")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
SUFFIXES += (".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES += (".avif",) * HAS_AVIF
# Beside pictures these are common, and nobody takes them for pictures.
TEXTS = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm")
TEXTS += (".yaml", ".yml", ".py", ".ipynb", ".log", ".url", ".ini", ".toml", ".lst")
# What desktops, network disks and archives leave; besides all that begin with a dot.
HIDDEN = ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")
HIDDEN += ("#recycle", "@recycle", "lost+found", "system volume information")
NAMED = 3  # Links and files that a note names.

# Where the bytes of a picture lie: a path, a span of a tar, or the bytes themselves.
Place = str | reading.Span | bytes


class Listing(NamedTuple):
    """The pictures beneath a folder; control characters in names are escaped."""

    files: Mapping[str, Place]  # By path beneath the folder.
    folders: tuple[str, ...] = ()  # Directly in it, those without pictures included.
    passed: Mapping[str, int] = {}  # Files that are not read, by ending.
    links: tuple[str, ...] = ()  # That lead to what is listed already, or nowhere.


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, by its name."""
    # Among those with a dot are macOS's ._picture.jpg and notebooks' copies.
    return name.startswith(".") or name.lower() in HIDDEN


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def list_folder(root: str | os.PathLike) -> Listing:
    """Lists the pictures beneath a folder on a disk, however deep.

    A folder is visited once, under its real name rather than a link's; so links that
    lead back, or to a folder that is listed, end no walk and count no picture twice.
    """
    if not os.path.isdir(root):
        return Listing({})
    files, folders, passed, skipped_links = {}, [], collections.Counter(), []
    # Following a link to a folder above would list this one, and its siblings, again.
    outside = {identity(folder) for folder in ancestors(os.path.realpath(root))}
    visited = set()
    folder_links, file_links = [], []

    def is_new(folder):
        return identity(folder) not in visited and identity(folder) not in outside

    def take(name, path):
        if is_picture(name):
            files[errors.printable(name)] = path
        elif ending(name) not in TEXTS:
            passed[ending(name)] += 1

    def visit(top, path):
        """Lists a folder and the real ones in it; links come later."""
        pending = [(top, path)]
        while pending:
            above, folder = pending.pop()
            if not is_new(folder):
                continue
            visited.add(identity(folder))
            if above.count("/") == 1:
                folders.append(errors.printable(above.rstrip("/")))
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = f"{above}{entry.name}"
                    if is_hidden(entry.name):
                        continue
                    if entry.is_symlink():
                        links = folder_links if entry.is_dir() else file_links
                        links.append((name, entry.path))
                    elif entry.is_dir():
                        pending.append((f"{name}/", entry.path))
                    elif entry.is_file():
                        take(name, entry.path)

    visit("", os.fspath(root))
    while folder_links:
        batch, folder_links = sorted(folder_links), []
        for name, path in batch:
            if not is_new(path):
                skipped_links.append(name)
            else:
                visit(f"{name}/", path)
    for name, path in sorted(file_links):
        target = os.path.realpath(path)
        folder, target_name = os.path.split(target)
        listed = is_picture(target_name) and identity(folder) in visited
        if listed or not os.path.isfile(target):
            skipped_links.append(name)
        else:
            take(name, path)
    return Listing(
        files,
        tuple(sorted(folders)),
        dict(passed),
        tuple(errors.printable(name) for name in skipped_links),
    )


def class_folders(root: str | os.PathLike) -> tuple[str, ...]:
    """The `Listing.folders` of `list_folder(root)`, without listing any file."""
    if not os.path.isdir(root):
        return ()
    visited = {identity(folder) for folder in ancestors(os.path.realpath(root))}
    visited.add(identity(root))
    with os.scandir(root) as entries:
        entries = [e for e in entries if e.is_dir() and not is_hidden(e.name)]
    names = []
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
        if identity(entry.path) not in visited:
            visited.add(identity(entry.path))
            names.append(errors.printable(entry.name))
    return tuple(sorted(names))


def ancestors(path: str) -> Iterable[str]:
    """The folders above an absolute path."""
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield path


def identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """The device and inode of a folder, whatever leads to it; None of nothing."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def notes(listing: Listing, origin: str) -> tuple[str, ...]:
    """Lines about the files of a listing that are not read.

    Args:
        listing: of a folder or a tar.
        origin: what a line calls it.
    """
    lines = []
    if listing.passed:
        counts = collections.Counter(listing.passed).most_common()
        endings = ", ".join(
            f"{count} {suffix or 'without an ending'}" for suffix, count in counts
        )
        lines.append(
            f"{origin}: passed over for their ending: {endings} (read are "
            f"{' '.join(SUFFIXES)}; convert the others)."
        )
    if listing.links:
        names = errors.shorten_list(listing.links, most=NAMED)
        lines.append(
            f"{origin}: passed over {len(listing.links)} links, to what is listed "
            f"already or cannot be reached: {names}."
        )
    return tuple(lines)
