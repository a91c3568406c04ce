# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The one door to the data: a recipe and a split in, a checked `Dataset` out."""

import difflib
import importlib

import numpy as np

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, fake

# Name -> the module whose `load(config, split)` it is, imported when it is used: small
# sets in memory need neither TensorFlow nor a JPEG library.
SOURCES = {
    "arrays": "g2sd_jax.data.arrays",
    "digits": "g2sd_jax.data.digits",
    "fake": "g2sd_jax.data.fake",
    "folder": "g2sd_jax.data.folder",
    "maps": "g2sd_jax.data.maps",
    "prepared": "g2sd_jax.data.prepared",
    "tfds:": "g2sd_jax.data.tfds_source",
}

LABELLED = ("maps", "fake")  # Sources with a label for every pixel.


def load(config, split, evaluate=False) -> datasets.Dataset:
    """One split of `config.data.source`, checked once and trusted afterwards.

    Args:
        config: the whole recipe.
        split: `config.data.train_split` or `config.data.eval_split`.
        evaluate: True where the split is only judged, so that its size is free.
    """
    loading = module(config)
    check_task(config)
    dataset = loading.load(config, split)
    if config.data.limit is not None:
        dataset = dataset._replace(count=min(dataset.count, config.data.limit))
    check(config, split, dataset)
    if split == config.data.train_split and not evaluate:
        check_count(config, split, dataset.count)
    return dataset


def invented(config, count) -> dict:
    """A training batch as `config.data.source` lays it out, of which nothing is read.

    Picture files come on a canvas and with boxes, label maps with sizes: invented ones
    take in all there is. Sets in memory, whose size only their file tells, count as
    pictures of the model's size.

    Args:
        config: the whole recipe.
        count: examples in the batch.
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
        fake.task_of(config),
    )
    batch = examples.fetch(np.arange(count))
    for name, whole in (("crop", (0, 0, *size)), ("image_size", size)):
        if name in layout:
            batch[name] = np.tile(np.array(whole, layout[name].dtype), (count, 1))
    return batch


def module(config):
    name = config.data.source
    name = "tfds:" if name.startswith("tfds:") else name
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SOURCES)}"
        raise ValueError(f"config.data.source={name!r} is not known; {hint}")
    return importlib.import_module(SOURCES[name])


def files(config, split) -> encoded.Encoded:
    """The undecoded files of a split, where the source has such."""
    listed = getattr(module(config), "listed", None)
    if listed is None:
        raise ValueError(
            f"config.data.source={config.data.source!r} holds no picture files: what "
            "lies in memory is not decoded, and label maps are not read without what "
            "they label."
        )
    return listed(config, split)


def check_task(config):
    """Refuses a source that has not got what the task is trained with."""
    name, task = config.data.source, config.task if "task" in config else None
    if task == "segmentation" and name not in LABELLED:
        why = "holds no label for every pixel"
        if name.startswith("tfds:scene_parse150"):
            why = (
                "is declared with annotations that are pictures of 3 channels, not "
                "with ADE20K's map of 150 classes"
            )
        raise ValueError(
            f"config.data.source={name!r} {why}; config.task=segmentation reads a "
            "folder of pictures and label maps, such as ADE20K's official one: "
            "--config.data.source=maps --config.data.path=ADEChallengeData2016"
        )
    if name == "maps" and task != "segmentation":
        raise ValueError(
            f"config.data.source='maps' is for config.task=segmentation, not for "
            f"{task or config.stage}; pictures alone are read with "
            "--config.data.source=folder."
        )


def check(config, split, dataset):
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
        )


def check_count(config, split, count):
    """Epochs and schedules are counted from the config, so it has to be right."""
    if count != config.data.train_examples:
        raise ValueError(
            f"config.data.train_examples={config.data.train_examples}, but split "
            f"{split!r} holds {count} examples (config.data.limit="
            f"{config.data.limit}); set --config.data.train_examples={count}."
        )
