# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of TensorFlow Datasets by name: `config.data.source="tfds:imagenet2012"`.

A set has to be prepared on the disk (`tfds build`); nothing is downloaded here. Local
files give random access, so the order of a run does not depend on the number of its
processes: array_record files by themselves, TFRecord files through an index of where
the pictures lie, made once (`tfrecord.scan`) and kept in `config.data.index_dir`.
Neither way imports TensorFlow, and no picture is decoded here. TFRecord files elsewhere
(gs://…) are read one after another: see `record_stream`.
"""

import difflib
import os
import pathlib
import re
from typing import Any, NamedTuple

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, packs, pipeline, tfds_files, tfds_stream

PREFIX = "tfds:"

frames = pipeline.Training  # What a training batch is laid out in.


def load(config, split) -> datasets.Dataset:
    """One split, decoded as it is needed."""
    found = find(config, split)
    if not found.remote:
        return pipeline.dataset(config, listed(config, split), split)
    if found.kind != "tfrecord":
        raise ValueError(
            f"{found.origin} is stored as {found.kind}, which is read from a local "
            "disk alone; copy it to one, or prepare it as tfrecord."
        )
    return tfds_stream.dataset(config, found, split)


class Found(NamedTuple):
    """One split of a prepared set."""

    builder: Any
    parts: list  # TFDS's file instructions: filename, skip, take, examples_in_shard
    image: str  # The feature with the encoded picture.
    label: str | None  # The feature with the class.
    classes: tuple[str, ...]
    origin: str

    @property
    def kind(self) -> str:
        return self.builder.info.file_format.value

    @property
    def remote(self) -> bool:
        return is_remote(self.builder.data_path)

    @property
    def paths(self) -> list[pathlib.Path]:
        return [pathlib.Path(part.filename) for part in self.parts]


def find(config, split) -> Found:
    """Looks for a split of `config.data.source`, and for what is in it."""
    builder = open_builder(config)
    parts = parts_of(builder, config, split)
    features = features_of(builder, config)
    origin = f"{config.data.source} ({split}) in {builder.data_path}"
    return Found(builder, parts, *features, origin)


def listed(config, split) -> encoded.Encoded:
    """The pictures of one split of a set whose files lie on a local disk."""
    found = find(config, split)
    if found.remote:
        raise ValueError(
            f"{found.origin} is not on a local disk, so its pictures cannot be read in "
            "any order; copy it to one."
        )
    if found.kind not in tfds_files.OPENED:
        raise ValueError(
            f"{found.origin} is stored as {found.kind}; accepted are array_record and "
            f"tfrecord: {command(config)} with --file_format=array_record"
        )
    packs.make_room(len(found.parts), found.origin)
    labels, read = tfds_files.OPENED[found.kind](config, found, split)
    return encoded.Encoded(
        count=sum(part.take for part in found.parts),
        classes=found.classes,
        labels=labels if found.label else None,
        read=read,
        name=lambda index: f"{config.data.source}/{split}#{index}",
        origin=found.origin,
    )


def open_builder(config):
    """The builder of `config.data.source`, its data prepared already."""
    import tensorflow_datasets as tfds  # A second, for those who use it.

    name = config.data.source.removeprefix(PREFIX)
    data_dir = os.path.expanduser(config.data.data_dir) or None
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        known += os.listdir(data_dir) if data_dir and os.path.isdir(data_dir) else []
        near = difflib.get_close_matches(re.split("[/:]", name)[0], known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "look for it with "
        hint += "" if near else "`tfds.list_builders()`."
        raise ValueError(
            f"config.data.source={config.data.source!r}: TensorFlow Datasets knows no "
            f"such set, and there is none in {data_dir or 'its default folder'} "
            f"(config.data.data_dir={config.data.data_dir!r}); {hint}"
        ) from None
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(
            f"config.data.source={config.data.source!r}: {one_line(error)} Write "
            "tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION."
        ) from error
    if not builder.info.splits:
        raise ValueError(not_prepared(builder, config))
    return builder


def not_prepared(builder, config):
    """What to do when a set is known, but not prepared."""
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    text = (
        f"config.data.source={config.data.source!r} is not prepared in "
        f"{builder.data_path} (config.data.data_dir={config.data.data_dir!r}). Prepare "
        f"it once, it need not be here: {command(config)}"
    )
    if manual:
        root = config.data.data_dir or "~/tensorflow_datasets"
        text += (
            f", after placing in {root}/downloads/manual what has to be fetched by "
            f"hand: {one_line(manual)}"
        )
    return text


def command(config):
    name = config.data.source.removeprefix(PREFIX)
    given = config.data.data_dir and f" --data_dir={config.data.data_dir}"
    return f"`tfds build {name}{given}`"


def one_line(text):
    return " ".join(str(text).split())


def is_remote(path):
    return "://" in str(path)


def parts_of(builder, config, split):
    """Which stretches of which files a split is."""
    try:
        parts = builder.info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{config.data.source} has no split {split!r}; its splits are "
            f"{', '.join(builder.info.splits)}, and parts such as train[:90%]. Set "
            "config.data.train_split and config.data.eval_split to them."
        ) from error
    if not parts:
        raise ValueError(f"{config.data.source}: split {split!r} holds no examples.")
    return parts


def features_of(builder, config) -> tuple:
    """(name of the picture's feature, of the label's or None, class names)."""
    from tensorflow_datasets import features as kinds

    held = dict(builder.info.features.items())
    images = [
        name
        for name, kind in held.items()
        if isinstance(kind, kinds.Image) and not isinstance(kind, kinds.LabeledImage)
    ]
    labels = [name for name, kind in held.items() if isinstance(kind, kinds.ClassLabel)]
    image = the_one(builder, config, images, "picture (Image)")
    if not config.data.classes and not labels:
        return image, None, ()
    label = the_one(builder, config, labels, "label (ClassLabel)")
    return (
        image,
        label,
        tuple(held[label].names or map(str, range(held[label].num_classes))),
    )


def the_one(builder, config, found, what):
    """The only feature of its kind, or the one that the set itself calls supervised."""
    supervised = builder.info.supervised_keys or ()
    chosen = [name for name in found if name in supervised] or found
    if len(chosen) != 1:
        raise ValueError(
            f"{config.data.source} has {len(found)} features that are a {what}"
            f"{': ' if found else ''}{', '.join(found)}; exactly one is needed. Its "
            f"features are {', '.join(builder.info.features)}. Export it as a folder "
            "of pictures and read that (config.data.source=folder)."
        )
    return chosen[0]
