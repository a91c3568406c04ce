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

import os
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, pipeline, reading
from g2sd_jax.data.tfds import files as tfds_files
from g2sd_jax.data.tfds import stream as tfds_stream

PREFIX = "tfds:"

frames = pipeline.Training  # The layout of a training batch.


def load(config: ConfigDict, split: str) -> datasets.Dataset:
    """One split, decoded on demand."""
    prepared_split = find_split(config, split)
    if not prepared_split.remote:
        return pipeline.dataset(config, list_files(config, split), split)
    if prepared_split.kind != "tfrecord":
        raise ValueError(
            f"{prepared_split.origin} is stored as {prepared_split.kind}, which is "
            "read from a local disk alone; copy it to one, or prepare it as tfrecord."
        )
    return tfds_stream.dataset(config, prepared_split, split)


def count(config: ConfigDict, split: str) -> tuple[int, int]:
    """The number of examples of a split, and of their classes."""
    prepared_split = find_split(config, split)
    examples = sum(part.take for part in prepared_split.parts)
    return examples, len(prepared_split.classes)


def find_split(config: ConfigDict, split: str) -> tfds_files.PreparedSplit:
    """Finds a split of `config.data.source`: its files and its features."""
    builder = open_builder(config)
    parts = file_parts(builder, config, split)
    image, label, classes = find_features(builder, config)
    return tfds_files.PreparedSplit(
        builder=builder,
        parts=parts,
        image=image,
        label=label,
        classes=classes,
        origin=f"{config.data.source} ({split}) in {builder.data_path}",
    )


def list_files(config: ConfigDict, split: str) -> encoded.Encoded:
    """The pictures of one split of a set whose files lie on a local disk."""
    prepared_split = find_split(config, split)
    if prepared_split.remote:
        raise ValueError(
            f"{prepared_split.origin} is not on a local disk, so its pictures cannot "
            "be read in any order; copy it to one."
        )
    if prepared_split.kind not in tfds_files.OPENERS:
        raise ValueError(
            f"{prepared_split.origin} is stored as {prepared_split.kind}; accepted are "
            f"array_record and tfrecord: {build_command(config)} with "
            "--file_format=array_record"
        )
    reading.raise_open_file_limit(len(prepared_split.parts), prepared_split.origin)
    open_files = tfds_files.OPENERS[prepared_split.kind]
    opened = open_files(config, prepared_split, split)
    return encoded.Encoded(
        count=sum(part.take for part in prepared_split.parts),
        classes=prepared_split.classes,
        labels=opened.labels if prepared_split.label else None,
        places=opened.places,
        reader=opened.reader,
        name=lambda index: f"{config.data.source}/{split}#{index}",
        origin=prepared_split.origin,
    )


def open_builder(config: ConfigDict) -> Any:
    """The `tfds.core.DatasetBuilder` of `config.data.source`, which is prepared."""
    import tensorflow_datasets as tfds  # Here, because importing it takes a second.

    name = config.data.source.removeprefix(PREFIX)
    data_dir = config.data.data_dir or None
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        sets = tfds.list_builders(with_community_datasets=False)
        sets += os.listdir(data_dir) if data_dir and os.path.isdir(data_dir) else []
        # Among a thousand sets, some name is half like any other.
        hint = errors.suggest(
            re.split("[/:]", name)[0],
            sets,
            otherwise="look for it with `tfds.list_builders()`.",
            cutoff=0.6,
        )
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
        raise ValueError(not_prepared_message(builder, config))
    return builder


def not_prepared_message(builder: Any, config: ConfigDict) -> str:
    """The message for a set that TFDS knows, but that is not prepared."""
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    text = (
        f"config.data.source={config.data.source!r} is not prepared in "
        f"{builder.data_path} (config.data.data_dir={config.data.data_dir!r}). Prepare "
        f"it once, it need not be here: {build_command(config)}"
    )
    if manual:
        root = config.data.data_dir or "~/tensorflow_datasets"
        text += (
            f", after placing in {root}/downloads/manual what has to be fetched by "
            f"hand: {one_line(manual)}"
        )
    return text


def build_command(config: ConfigDict) -> str:
    """The command that prepares `config.data.source`."""
    name = config.data.source.removeprefix(PREFIX)
    option = config.data.data_dir and f" --data_dir={config.data.data_dir}"
    return f"`tfds build {name}{option}`"


def one_line(text: object) -> str:
    """A text without line breaks."""
    return " ".join(str(text).split())


def file_parts(builder: Any, config: ConfigDict, split: str) -> list:
    """The stretches of files that make up a split, as TFDS's file instructions."""
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


def find_features(
    builder: Any, config: ConfigDict
) -> tuple[str, str | None, tuple[str, ...]]:
    """(name of the picture's feature, of the label's or None, class names)."""
    from tensorflow_datasets import features as kinds

    features = dict(builder.info.features.items())
    images = [
        name
        for name, kind in features.items()
        if isinstance(kind, kinds.Image) and not isinstance(kind, kinds.LabeledImage)
    ]
    labels = [
        name for name, kind in features.items() if isinstance(kind, kinds.ClassLabel)
    ]
    image = choose_feature(builder, config, images, "picture (Image)")
    if not config.data.classes and not labels:
        return image, None, ()
    if not labels:
        listing = ", ".join(
            f"{name} ({type(feature).__name__})" for name, feature in features.items()
        )
        raise ValueError(
            f"{config.data.source} has no single label (ClassLabel) for a picture, as "
            f"config.data.classes={config.data.classes} needs: its features are "
            f"{listing}; several labels or boxes are not read. Pictures alone need "
            "--config.data.classes=0, in a recipe that learns without labels."
        )
    label = choose_feature(builder, config, labels, "label (ClassLabel)")
    classes = features[label].names or range(features[label].num_classes)
    return image, label, tuple(map(errors.printable, classes))


def choose_feature(
    builder: Any, config: ConfigDict, candidates: Sequence[str], what: str
) -> str:
    """The only feature of its kind, or the one that the set itself calls supervised.

    Args:
        builder: of the set.
        config: the recipe.
        candidates: names of the features of that kind.
        what: the kind, for errors.
    """
    supervised = builder.info.supervised_keys or ()
    chosen = [name for name in candidates if name in supervised] or candidates
    if len(chosen) != 1:
        raise ValueError(
            f"{config.data.source} has {len(candidates)} features that are a {what}"
            f"{': ' if candidates else ''}{', '.join(candidates)}; exactly one is "
            f"needed. Its features are {', '.join(builder.info.features)}. Export it "
            "as a folder of pictures and read that (config.data.source=folder)."
        )
    return chosen[0]
