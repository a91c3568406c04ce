# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The one door to the data: a recipe and a split in, a checked `Dataset` out."""

import importlib
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import classes as class_lists
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded
from g2sd_jax.data.memory import fake


class Source(NamedTuple):
    """A module with `load(config, split)` and `count(config, split)`.

    The fields are what is known before it is imported.

    It is imported when it is used: small sets in memory need neither TensorFlow nor a
    JPEG library.
    """

    module: str
    gives: Collection[str] = ("label",)  # Batch keys beside `image`.
    needs: Sequence[str] = ()  # Keys of `config.data` that not every recipe has.
    rules: Sequence[str] = ()  # Those that say how a picture or its label is read.


SOURCES = {
    "arrays": Source("g2sd_jax.data.memory.arrays"),
    "digits": Source("g2sd_jax.data.memory.digits"),
    "folder": Source("g2sd_jax.data.folder", rules=("eval_crop",)),
    "maps": Source(
        "g2sd_jax.data.maps.source",
        gives=("label_map", "image_size"),
        needs=("images", "labels", "reduce_zero_label", "ignore"),
        rules=("reduce_zero_label", "ignore", "map_orientation"),
    ),
    "coco": Source(
        "g2sd_jax.data.coco.source",
        gives=("boxes", "labels", "valid_boxes", "masks", "frames", "size"),
        needs=("images", "annotations", "max_boxes", "mask_size", "surplus"),
    ),
    "prepared": Source("g2sd_jax.data.copies.source", rules=("eval_crop",)),
    "tfds:": Source("g2sd_jax.data.tfds.source", rules=("eval_crop",)),
    "fake": Source("g2sd_jax.data.memory.fake", gives=fake.MAKERS),
}
# Why a set that seems to have a key has not.
BECAUSE = {
    "tfds:scene_parse150": "its annotations are declared as pictures of 3 channels, "
    "not as ADE20K's map of 150 classes",
}


def load(
    config: ConfigDict, split: str, reads: Sequence[str] = (), evaluate: bool = False
) -> datasets.Dataset:
    """One split of `config.data.source`, checked once and trusted afterwards.

    Args:
        config: the recipe.
        split: `config.data.train_split` or `config.data.eval_split`.
        reads: batch keys beside `image` that the stage needs, its `Stage.reads`; ()
            takes what the source gives, which is labels where they are invented.
        evaluate: True where the split is only evaluated, so that its size is free.
    """
    check_reads(config, reads)
    loading = module(config)
    training = split == config.data.train_split and not evaluate
    if loading is fake:  # What is invented depends on what is read.
        dataset = fake.load(config, split, reads)
    elif training:
        dataset = getattr(loading, "load_training", loading.load)(config, split)
    else:
        dataset = loading.load(config, split)
    if config.data.limit is not None:
        dataset = dataset._replace(count=min(dataset.count, config.data.limit))
    check(config, split, dataset)
    if training:
        check_count(config, split, dataset)
    return dataset


def count(config: ConfigDict) -> tuple[int, int]:
    """The examples that `config` trains on, and the classes they are of.

    Nothing is decoded but label maps that no class list names.

    Returns:
        The number of examples of `config.data.train_split`, at most
        `config.data.limit`, and the number of classes, 0 where there are no labels.
    """
    examples, classes = module(config).count(config, config.data.train_split)
    if config.data.limit is not None:
        examples = min(examples, config.data.limit)
    if config.data.class_list and classes:
        classes = class_lists.count_outputs(config.data.class_list)
    return examples, classes


def invented(
    config: ConfigDict, count: int, reads: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """A training batch as `config.data.source` lays it out, without reading a file.

    Picture files come on a canvas and with boxes, label maps with sizes: invented ones
    fill all of it. Sets in memory, whose size only their file tells, count as pictures
    of the model's size.

    Args:
        config: the recipe.
        count: examples in the batch.
        reads: batch keys beside `image` that the stage needs.
    """
    frames = getattr(module(config), "frames", None)
    layout = frames(config).empty(count) if frames else {}
    size = tuple(config.model.image_size)
    if frames:
        size = layout["image"].shape[1:3]
    examples = fake.dataset(
        count,
        size,
        config.model.channels,
        max(1, config.data.classes),
        reads,
        layout=fake.box_layout(config),
    )
    batch = examples.fetch(np.arange(count))
    for name, extent in (("crop", (0, 0, *size)), ("image_size", size)):
        if name in layout:
            batch[name] = np.tile(np.array(extent, layout[name].dtype), (count, 1))
    return batch


def chosen(config: ConfigDict) -> Source:
    """The `Source` that `config.data.source` names."""
    name = config.data.source
    name = "tfds:" if name.startswith("tfds:") else name
    return errors.lookup("config.data.source", name, SOURCES)


def describe(config: ConfigDict) -> dict:
    """How a run reads pictures and labels: keys of `config.data`, by name.

    They travel with its weights: a picture that is asked about later is read alike.
    """
    keys = ("source", *chosen(config).rules)
    return {key: config.data[key] for key in keys if key in config.data}


def module(config: ConfigDict) -> ModuleType:
    """The module of `config.data.source`."""
    return importlib.import_module(chosen(config).module)


def files(config: ConfigDict, split: str) -> encoded.Encoded:
    """The undecoded files of a split, where the source has such."""
    list_files = getattr(module(config), "list_files", None)
    if list_files is None:
        raise ValueError(
            f"config.data.source={config.data.source!r} holds no picture files: what "
            "lies in memory is not decoded, and label maps and objects are not read "
            "without the pictures they belong to."
        )
    return list_files(config, split)


def check_reads(config: ConfigDict, reads: Sequence[str]) -> None:
    """Refuses a source that does not give what the stage reads, or needs other keys."""
    name, source = config.data.source, chosen(config)
    missing = [key for key in reads if key not in source.gives]
    if missing:
        reader = f"config.stage={config.stage}"
        if "task" in config:
            reader += f" of config.task={config.task}"
        because = "".join(
            f": {why}" for prefix, why in BECAUSE.items() if name.startswith(prefix)
        )
        others = [
            f"config.data.source={other}"
            for other, each in SOURCES.items()
            if set(reads) <= set(each.gives)
        ]
        raise ValueError(
            f"config.data.source={name!r} gives {', '.join(source.gives)} with each "
            f"picture, but {reader} reads {', '.join(missing)}{because}; use "
            f"{' or '.join(others) or 'a source that gives it'}."
        )
    because = (
        f"config.data.source={name} (recipes of label maps have them; pictures alone "
        "are read with config.data.source=folder)"
    )
    errors.require(config.data, "config.data", source.needs, because)


def check(config: ConfigDict, split: str, dataset: datasets.Dataset) -> None:
    """Refuses a split without examples, or with other channels or classes."""
    where = f"split {split!r} of config.data.source={config.data.source!r}"
    if dataset.count < 1:
        raise ValueError(
            f"{where} holds no examples (config.data.limit={config.data.limit})."
        )
    channels = dataset.fetch(np.zeros(1, np.int64))["image"].shape[-1]
    if channels != config.model.channels:
        raise ValueError(
            f"{where} has pictures of {channels} channels, but config.model.channels="
            f"{config.model.channels}; set --config.model.channels={channels} (and as "
            "many values in config.data.mean and config.data.std)."
        )
    # A split that lacks one class would number all later ones differently.
    if dataset.classes and config.data.classes not in (0, len(dataset.classes)):
        raise ValueError(
            f"{where} has {len(dataset.classes)} classes ({', '.join(dataset.classes)})"
            f", but config.data.classes={config.data.classes}; set "
            f"--config.data.classes={len(dataset.classes)}, or complete the split."
            + "".join(f" {note}" for note in dataset.notes)
        )


def check_count(config: ConfigDict, split: str, dataset: datasets.Dataset) -> None:
    """Refuses another count than the config's, from which schedules are reckoned."""
    count = dataset.count
    if count != config.data.train_examples:
        held_out = ""
        if config.data.hold_out:
            held_out = (
                f" config.data.hold_out={config.data.hold_out} keeps its share of "
                "every class for evaluation, of a class of two or more at least one."
            )
        raise ValueError(
            f"config.data.train_examples={config.data.train_examples}, but split "
            f"{split!r} holds {count} examples (config.data.limit="
            f"{config.data.limit}); set --config.data.train_examples={count}."
            + held_out
            + "".join(f" {note}" for note in dataset.notes)
        )
