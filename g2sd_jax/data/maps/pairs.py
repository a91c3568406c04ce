# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and their label maps, matched by two patterns in a folder or a tar.

`config.data.images` and `config.data.labels` are paths beneath `config.data.path` with
`{split}` and one `*` in the last part: what the star stands for has to be the same for
a picture and its map, deeper folders included. Without an ending any picture file fits.
Without `{split}` a share of the pictures evaluates, `config.data.hold_out`.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import encoded, folder, tar, walk

NAMED = 5  # Files that an error names.
# What the star of a pattern stands for -> (path beneath the root, place).
Matches = Mapping[str, tuple[str, walk.Place]]
ACCEPTED = (
    "a folder, or a .tar, .tar.gz or .tgz of one, that holds config.data.images and "
    "config.data.labels; {split} in the path stands for the split"
)


def list_pairs(
    config: ConfigDict, split: str
) -> tuple[encoded.Encoded, encoded.Encoded | None]:
    """The pictures of one split, and the label map of each at the same index.

    With `config.data.labels=""` there are no label maps, and the second is None.
    """
    path = folder.locate(config, split, accepted=ACCEPTED)
    root = folder.open_root(path)
    pictures = match_pattern(config, root, "images", split)
    if not config.data.labels:
        return _pictures_alone(config, root, pictures, split, path), None
    label_maps = match_pattern(config, root, "labels", split)
    picture_pattern = pattern_for(config, "images", split)
    label_pattern = pattern_for(config, "labels", split)
    if not pictures and not label_maps:
        raise ValueError(
            f"{path} has no files {picture_pattern} and none {label_pattern}; it "
            f"holds: {', '.join(root.folders()) or 'no folders'}. Correct "
            "config.data.images and config.data.labels, or config.data.train_split and "
            "eval_split."
        )
    if pictures.keys() != label_maps.keys():
        lone_pictures = [
            pictures[stem][0] for stem in pictures.keys() - label_maps.keys()
        ]
        lone_maps = [
            label_maps[stem][0] for stem in label_maps.keys() - pictures.keys()
        ]
        raise ValueError(
            f"split {split!r} of {path}: "
            f"{count_and_names(lone_pictures, 'pictures')} without a label map, "
            f"{count_and_names(lone_maps, 'label maps')} without a picture; "
            f"{picture_pattern} and {label_pattern} have to agree in what * "
            f"stands for{suggest_patterns(config, pictures, label_maps)}."
        )
    origin = f"split {split!r} of {path}"
    above = f"{path}{root.separator}"
    stems = stems_of(config, split, pictures)
    return (
        as_encoded(root, [pictures[stem] for stem in stems], above, origin),
        as_encoded(root, [label_maps[stem] for stem in stems], above, origin),
    )


def suggest_patterns(config: ConfigDict, pictures: Matches, label_maps: Matches) -> str:
    """A clause on patterns by which most of the files agree, or "".

    What the names of all pictures, or of all maps, begin or end with up to a separator,
    such as the `_mask` of `7_mask.png`, is taken for no part of what they share.
    """
    bare, patterns = [], []
    for key, matches in (("images", pictures), ("labels", label_maps)):
        names = [stem.rpartition("/")[2] for stem in matches]
        before = re.sub(r"[^_\-. ]*$", "", common_beginning(names))
        after = common_beginning([name[len(before) :][::-1] for name in names])
        after = re.sub(r"^[^_\-. ]*", "", after[::-1])
        bare.append(
            {
                f"{above}{slash}{name[len(before) : len(name) - len(after)]}"
                for above, slash, name in (stem.rpartition("/") for stem in matches)
            }
        )
        if before or after:
            # A pattern with a dot names the ending, too.
            path = next(iter(matches.values()))[0]
            after += os.path.splitext(path)[1] if "." in after else ""
            pattern = config.data[key].replace("*", f"{before}*{after}")
            patterns.append(f"config.data.{key}={pattern!r}")
    shared = bare[0] & bare[1]
    if len(shared) <= len(pictures.keys() & label_maps.keys()):
        return ""
    return f", as they do with {' and '.join(patterns)}"


def common_beginning(names: Sequence[str]) -> str:
    """What all of the names begin with."""
    if not names:
        return ""
    letters = zip(min(names), max(names), strict=False)
    return "".join(
        a for a, _ in itertools.takewhile(lambda pair: len(set(pair)) == 1, letters)
    )


def _pictures_alone(
    config: ConfigDict,
    root: folder.Folder | tar.Tar,
    pictures: Mapping[str, tuple[str, walk.Place]],
    split: str,
    path: os.PathLike,
) -> encoded.Encoded:
    """Random access to the pictures of a split that has no label maps."""
    if not pictures:
        raise ValueError(
            f"{path} has no files {pattern_for(config, 'images', split)}; it holds: "
            f"{', '.join(root.folders()) or 'no folders'}. Correct config.data.images, "
            "or config.data.train_split."
        )
    origin, above = f"split {split!r} of {path}", f"{path}{root.separator}"
    files = [pictures[stem] for stem in stems_of(config, split, pictures)]
    return as_encoded(root, files, above, origin)


def stems_of(config: ConfigDict, split: str, pictures: Matches) -> list[str]:
    """The sorted keys of the pictures of a split, after `config.data.hold_out`."""
    if not config.data.hold_out:
        return sorted(pictures)
    top = pattern_for(config, "images", split).rpartition("/")[0]
    names = {path.removeprefix(f"{top}/"): stem for stem, (path, _) in pictures.items()}
    chosen = folder.hold_out_files(config, split, names, ("images", "labels"))
    return sorted(names[name] for name in chosen)


def as_encoded(
    root: folder.Folder | tar.Tar,
    files: Sequence[tuple[str, walk.Place]],
    above: str,
    origin: str,
) -> encoded.Encoded:
    """Random access to some files of a folder or a tar.

    Args:
        root: the folder or tar.
        files: (path beneath the root, place) of each.
        above: what an error puts before the path of a file.
        origin: what an error calls all of them.
    """
    return encoded.Encoded(
        count=len(files),
        classes=(),
        labels=None,
        places=[place for _, place in files],
        reader=root.reader,
        name=lambda index: f"{above}{files[index][0]}",
        origin=origin,
    )


def match_pattern(
    config: ConfigDict, root: folder.Folder | tar.Tar, key: str, split: str
) -> dict[str, tuple[str, walk.Place]]:
    """The files of one split that fit `config.data[key]`.

    Returns:
        {what the star stands for: (path beneath the root, place)}.
    """
    pattern = config.data[key]
    top, _, last = pattern_for(config, key, split).rpartition("/")
    before, star, after = last.partition("*")
    if not star or pattern.count("*") != 1:
        raise ValueError(
            f"config.data.{key}={pattern!r} needs exactly one *, in its last part, "
            "such as 'images/{split}/*' or '{split}annot/*_L.png'."
        )
    ending = re.escape(after)
    if "." not in after:
        ending += "(?i:" + "|".join(map(re.escape, walk.SUFFIXES)) + ")"
    fits = re.compile(rf"((?:.*/)?){re.escape(before)}([^/]+?){ending}")
    matches = {}
    for name, place in root.beneath(top).files.items():
        match = fits.fullmatch(name)
        if match is None:
            continue
        path, stem = f"{top}/{name}".lstrip("/"), "".join(match.groups())
        if stem in matches:
            raise ValueError(
                f"{path} and {matches[stem][0]} are both {stem!r} of config.data.{key}="
                f"{pattern!r}; give the pattern an ending, or remove one."
            )
        matches[stem] = path, place
    return matches


def pattern_for(config: ConfigDict, key: str, split: str) -> str:
    """`config.data[key]` for one split."""
    return config.data[key].replace("{split}", split)


def count_and_names(names: Sequence[str], what: str) -> str:
    """`3 pictures (a, b, c)`, of which not all are named if there are many."""
    listing = f" ({errors.shorten_list(names, most=NAMED)})" if names else ""
    return f"{len(names)} {what}{listing}"
