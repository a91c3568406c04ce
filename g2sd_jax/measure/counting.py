# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the pictures that a chain is to be trained on, and how they are laid out.

Each of `SOURCES` takes the path and the chain's own arguments, by name, and answers
with the facts that `g2sd_jax.configs.chains.own` and the chain's recipe ask for.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from g2sd_jax import errors, recipes
from g2sd_jax.configs.chains import own
from g2sd_jax.data import decoder, encoded, folder, source
from g2sd_jax.data.coco import annotations as coco_json
from g2sd_jax.data.coco import source as coco
from g2sd_jax.data.maps import pairs
from g2sd_jax.data.maps import source as maps

SAMPLED = 64  # Pictures that are opened to see how large they are.
TRAINING = ("train", "training")
EVALUATION = ("val", "valid", "validation", "test", "testing")
# Where pictures and their label maps lie, and pictures and their json: the usual names.
MAPS = tuple(
    layout
    for name in ("labels", "masks", "annotations")
    for layout in (
        ("images/{split}/*", f"{name}/{{split}}/*"),
        ("{split}/images/*", f"{{split}}/{name}/*"),
        ("{split}/*", f"{{split}}_{name}/*"),
    )
)
MAPS += (("{split}/*", "{split}annot/*"),)
MAPS += tuple(("images/*", f"{name}/*") for name in ("labels", "masks", "annotations"))
OBJECTS = ("{split}2017", "images/{split}", "{split}/images", "{split}")
OBJECTS += ("images_{split}.tar", "{split}.tar", "images", "images.tar", ".")
JSONS = tuple(
    f"{above}{name}.json{packed}"
    for above in ("annotations/", "", "{split}/")
    for name in (
        "instances_{split}2017",
        "instances_{split}",
        "{split}",
        "_annotations.coco",
        "annotations",
        "instances",
        "instances_default",
    )
    for packed in ("", ".gz")
)


def count_classes(path: str, options: Mapping[str, str]) -> dict[str, object]:
    """Counts the pictures of class folders, or of none.

    Args:
        path: of a folder or a tar.
        options: of the chain; none says how pictures are read.

    Returns:
        pictures: of the training split.
        classes: 0 where no picture has a label.
        side: the shorter one of the median picture, in pixels.
        split: the names of both splits, `train+val`; or `hold_out`, or `none` where
            there is nothing to judge by.
        judged: classes of the evaluation split where the training one has none.
    """
    config = recipes.load("pretrain", {"data.source": "folder", "data.path": path})
    split = find_split(config)
    config = split_config(config, split)
    pictures, classes = source.count(config)
    if not classes:
        split = split if "+" in split else "none"
        config = split_config(config, split)
        pictures, _ = source.count(config)
    judged = 0
    if not classes and "+" in split:
        unlabelled = split_config(config, split, classes=0)
        judged = len(folder.list_files(unlabelled, config.data.eval_split).classes)
    files = folder.list_files(config, config.data.train_split)
    return dict(
        pictures=pictures,
        classes=classes,
        side=shorter_side(files),
        split=split,
        judged=judged,
    )


def count_maps(path: str, options: Mapping[str, str]) -> dict[str, object]:
    """Counts pictures with label maps, and the classes of all maps.

    Args:
        path: of a folder, or of tars.
        options: `images` and `labels`, the patterns, and `split`, or "" for what is
            there; `ignore` and `names` as the chain has them.

    Returns:
        pictures, side: as of `count_classes`.
        classes: up to the highest label of both splits, or those of `names`.
        split: the names of both splits, or `hold_out`.
        images, labels: the patterns.
    """
    ignored = {int(label) for label in options["ignore"].split("+") if label}
    keys = dict(
        path=path,
        class_list=options["names"],
        ignore=tuple(sorted(ignored - {0})),
        reduce_zero_label=0 in ignored,
    )
    overrides = {f"data.{key}": value for key, value in keys.items()}
    config = recipes.load("finetune:task=segmentation", overrides)
    layouts = [(options["images"], options["labels"])]
    if not all(layouts[0]):
        layouts = [
            tuple(mine or usual for mine, usual in zip(layouts[0], layout, strict=True))
            for layout in MAPS
        ]

    def has_pairs(config, split):
        root = folder.open_root(folder.locate(config, split))
        return all(pairs.match_pattern(config, root, key, split) for key in keys)

    keys = ("images", "labels")
    chosen = first_layout(config, keys, layouts, options["split"], has_pairs)
    if chosen is None and len(layouts) == 1:  # Asked for: it says what is wrong.
        layout = dict(zip(keys, layouts[0], strict=True))
        config = split_config(config, options["split"] or "train+val", **layout)
        pairs.list_pairs(config, config.data.train_split)
    if chosen is None:
        raise ValueError(
            f"path={path!r}: no pictures with label maps of the same names are where "
            f"they usually are{holds(path)}. Say where, such as images={{split}}/*.jpg,"
            "labels={split}annot/*.png,split=train+val; pictures without maps are for "
            "chains/folder."
        )
    config, split = chosen
    counts = [maps.count(config, name) for name in sides(config)]
    classes = max(classes for _, classes in counts)
    if classes < 2:
        raise ValueError(
            f"path={path!r}: the label maps hold no label but 0 and what is ignored "
            "(255 is), and one class has nothing to be told from; store a mask of 0 "
            "and 255 as 0 and 1."
        )
    pictures, _ = pairs.list_pairs(config, config.data.train_split)
    return dict(
        pictures=counts[0][0],
        classes=classes,
        side=shorter_side(pictures),
        split=split,
        images=config.data.images,
        labels=config.data.labels,
    )


def count_objects(path: str, options: Mapping[str, str]) -> dict[str, object]:
    """Counts the pictures of a COCO json that have an object, and the objects.

    Args:
        path: of a folder.
        options: `images` and `annotations`, the patterns, and `split`, or "" for what
            is there.

    Returns:
        pictures, side: as of `count_classes`, but for the longer side.
        classes: categories.
        split: the names of both splits, or `hold_out`.
        images, annotations: the patterns.
        objects: in the fullest picture.
    """
    config = recipes.load("finetune:task=detection", {"data.path": path})
    mine = (options["images"], options["annotations"])
    layouts = [
        tuple(a or b for a, b in zip(mine, layout, strict=True))
        for layout in itertools.product(OBJECTS, JSONS)
    ]

    def is_there(config, split):
        coco.locate(config, "images", split)
        return coco.locate(config, "annotations", split).is_file()

    keys = ("images", "annotations")
    chosen = first_layout(config, keys, layouts, options["split"], is_there)
    if chosen is None:
        raise ValueError(
            f"path={path!r}: no COCO json with its pictures is where they usually are"
            f"{holds(path)}. Say where, such as images=photos/{{split}},annotations="
            "{split}.json,split=train+val."
        )
    config, split = chosen
    pictures, classes = source.count(config)
    if not pictures:
        raise ValueError(
            f"path={path!r}: {config.data.annotations} has no picture with an object."
        )
    names = dict.fromkeys(sides(config))
    images = [image for name in names for image in annotations_of(config, name)]
    return dict(
        pictures=pictures,
        classes=classes,
        side=int(np.median([max(image.size) for image in images])),
        split=split,
        images=config.data.images,
        annotations=config.data.annotations,
        objects=max(len(image.objects) for image in images),
    )


def annotations_of(config: ConfigDict, split: str) -> tuple[coco_json.Image, ...]:
    """The pictures of a split of a json."""
    return coco.list_pictures(config, split)[0].images


def first_layout(
    config: ConfigDict,
    keys: tuple[str, str],
    layouts: list[tuple[str, str]],
    asked: str,
    is_there: Callable[[ConfigDict, str], bool],
) -> tuple[ConfigDict, str] | None:
    """The first layout of which both splits are there, and the names of the splits.

    Args:
        config: that reads the pictures.
        keys: of `config.data`, which a layout sets.
        layouts: values of both.
        asked: names of the splits, `train+val`; "" for the usual ones.
        is_there: (config, split) -> whether there is anything; it may raise.
    """
    usual = [f"{a}+{b}" for a, b in itertools.product(TRAINING, EVALUATION)]
    for layout in layouts:
        data = dict(zip(keys, layout, strict=True))
        split_names = any("{split}" in value for value in (config.data.path, *layout))
        if split_names and asked == "hold_out":
            continue
        for names in ([asked] if asked else usual) if split_names else ["hold_out"]:
            changed = split_config(config, names, **data)
            try:
                if all(is_there(changed, split) for split in sides(changed)):
                    return changed, names
            except ValueError:
                continue
    return None


def sides(config: ConfigDict) -> tuple[str, str]:
    """The names of the training and of the evaluation split."""
    return config.data.train_split, config.data.eval_split


def holds(path: str) -> str:
    """What a folder holds, as a clause for an error; "" where it is none."""
    try:
        names = folder.open_root(folder.Path(path)).folders()
    except (OSError, ValueError):
        return ""
    return f" (its folders: {errors.shorten_list(names, most=8)})" if names else ""


def find_split(config: ConfigDict) -> str:
    """The splits among the folders at `config.data.path`, or `hold_out`."""
    if "{split}" in config.data.path:
        training = next(
            (name for name in TRAINING if exists(config, name)), TRAINING[0]
        )
        evaluation = next((name for name in EVALUATION if exists(config, name)), None)
        if evaluation is None:
            raise ValueError(
                f"path={config.data.path!r}: there is nothing to evaluate on; "
                f"{{split}} may stand for one of {', '.join(EVALUATION)}."
            )
        return f"{training}+{evaluation}"
    names = set(folder.open_root(folder.locate(config, "train")).folders())
    training = next((name for name in TRAINING if name in names), None)
    evaluation = next((name for name in EVALUATION if name in names), None)
    if training and evaluation:
        return f"{training}+{evaluation}"
    if training and not evaluation:
        raise ValueError(
            f"path={config.data.path!r} has a folder {training!r} and none to evaluate "
            f"on; add one of {', '.join(EVALUATION)}, or name {config.data.path}/"
            f"{training} itself: a share of its pictures is then held out."
        )
    return "hold_out"


def exists(config: ConfigDict, split: str) -> bool:
    """Whether there is a file or folder for a split."""
    try:
        folder.locate(config, split)
    except ValueError:
        return False
    return True


def split_config(config: ConfigDict, split: str, **data: str | int) -> ConfigDict:
    """Copies a config with the splits that `split` names, and keys of `config.data`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.hold_out = 0.0
        if split == "hold_out":
            config.data.hold_out = own.HELD_OUT
        elif "+" in split:
            config.data.train_split, config.data.eval_split = split.split("+")
        config.data.update(data)
    return config.lock()


def shorter_side(files: encoded.Encoded) -> int:
    """The shorter side of the median picture, in pixels; unreadable ones aside."""
    sides = []
    for index in np.unique(np.linspace(0, files.count - 1, SAMPLED).astype(int)):
        try:
            with decoder.open_image(files.read(int(index))) as image:
                sides.append(min(image.size))
        except (OSError, decoder.Unreadable, Image.DecompressionBombError):
            continue
    if not sides:
        raise ValueError(f"{files.origin}: no picture could be opened.")
    return int(np.median(sides))


SOURCES: Mapping[str, Callable[[str, Mapping[str, str]], dict[str, object]]]
SOURCES = {"folder": count_classes, "maps": count_maps, "coco": count_objects}
