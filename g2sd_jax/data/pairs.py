# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and their label maps, found by two patterns in a folder or a tar.

`config.data.images` and `config.data.labels` are paths beneath `config.data.path` with
`{split}` and one `*` in the last part: what the star stands for has to be the same for
a picture and its map, deeper folders included. Without an ending any picture file fits.
"""

import re

from g2sd_jax.data import encoded, folder

NAMED = 5  # Files that an error names.
ACCEPTED = (
    "a folder, or a .tar, .tar.gz or .tgz of one, that holds config.data.images and "
    "config.data.labels; {split} in the path stands for the split"
)


def listed(config, split) -> tuple[encoded.Encoded, encoded.Encoded]:
    """The pictures of one split, and the label map of each at the same index."""
    path = folder.located(config, split, accepted=ACCEPTED)
    held = folder.opened(path)
    found = {key: matching(config, held, key, split) for key in ("images", "labels")}
    pictures, maps = found["images"], found["labels"]
    if not pictures and not maps:
        raise ValueError(
            f"{path} has no files {told(config, 'images', split)} and none "
            f"{told(config, 'labels', split)}; it holds: "
            f"{', '.join(held.folders()) or 'no folders'}. Correct config.data.images "
            "and config.data.labels, or config.data.train_split and eval_split."
        )
    lonely = sorted(set(pictures) - set(maps)), sorted(set(maps) - set(pictures))
    if any(lonely):
        raise ValueError(
            f"split {split!r} of {path}: "
            f"{some([pictures[stem][0] for stem in lonely[0]], 'pictures')} without a "
            f"label map, {some([maps[stem][0] for stem in lonely[1]], 'label maps')} "
            f"without a picture; {told(config, 'images', split)} and "
            f"{told(config, 'labels', split)} have to agree in what * stands for."
        )
    origin = f"split {split!r} of {path}"
    stems = sorted(pictures)
    return tuple(
        files(held, [each[stem] for stem in stems], f"{path}{held.mark}", origin)
        for each in (pictures, maps)
    )


def files(held, places, mark, origin):
    return encoded.Encoded(
        count=len(places),
        classes=(),
        labels=None,
        read=lambda index: held.read(places[index][1]),
        name=lambda index: f"{mark}{places[index][0]}",
        origin=origin,
    )


def matching(config, held, key, split) -> dict:
    """{what the star stands for: (path, place)} of the files that fit a pattern."""
    given = config.data[key]
    top, _, last = given.replace("{split}", split).rpartition("/")
    before, star, after = last.partition("*")
    if not star or given.count("*") != 1:
        raise ValueError(
            f"config.data.{key}={given!r} needs exactly one *, in its last part, such "
            "as 'images/{split}/*' or '{split}annot/*_L.png'."
        )
    ending = re.escape(after)
    if "." not in after:
        ending += "(?i:" + "|".join(map(re.escape, folder.SUFFIXES)) + ")"
    fits = re.compile(rf"((?:.*/)?){re.escape(before)}([^/]+?){ending}")
    found = {}
    for name, place in held.files(top).items():
        match = fits.fullmatch(name)
        if match is None:
            continue
        full, stem = f"{top}/{name}".lstrip("/"), "".join(match.groups())
        if stem in found:
            raise ValueError(
                f"{full} and {found[stem][0]} are both {stem!r} of config.data.{key}="
                f"{given!r}; give the pattern an ending, or remove one."
            )
        found[stem] = full, place
    return found


def told(config, key, split):
    return config.data[key].replace("{split}", split)


def some(names, what):
    more = f", … {len(names) - NAMED} more" if len(names) > NAMED else ""
    listing = f" ({', '.join(names[:NAMED])}{more})" if names else ""
    return f"{len(names)} {what}{listing}"
