# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of TensorFlow Datasets by name: `config.data.source="tfds:imagenet2012"`.

A set has to be prepared on the disk (`tfds build`); nothing is downloaded here. Local
files give random access, so the order of a run does not depend on the number of its
processes: array_record files by themselves, TFRecord files through an index of where
the pictures lie, made once (`tfrecord.scan`) and kept in `config.data.index_dir`.
Neither way imports TensorFlow, and no picture is decoded here. TFRecord files elsewhere
(gs://…) are read one after another: see `tfds_stream`.
"""

import difflib
import hashlib
import json
import os
import pathlib
import re
import tempfile
import zipfile
from concurrent import futures

import numpy as np
import tqdm

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import encoded, packs, pipeline, tfrecord

PREFIX = "tfds:"
CHUNK = 1000  # Records of an array_record file that one thread reads at a time.


def load(config, split) -> datasets.Dataset:
    """One split, decoded as it is needed."""
    return pipeline.dataset(config, listed(config, split), split)


def listed(config, split) -> encoded.Encoded:
    """The pictures of one split of a set whose files lie on a local disk."""
    builder = open_builder(config)
    check_split(builder, config, split)
    image, label, classes = features_of(builder, config)
    origin = f"{config.data.source} ({split}) in {builder.data_path}"
    if is_remote(builder):
        raise ValueError(
            f"{origin} is not on a local disk, so its pictures cannot be read in any "
            "order; copy it to one, or set --config.data.source to a copy that `g2sd "
            "prepare` made of it."
        )
    kind = builder.info.file_format.value
    if kind not in ("tfrecord", "array_record"):
        raise ValueError(
            f"{origin} is stored as {kind}; accepted are array_record and tfrecord: "
            f"{command(config)} with --file_format=array_record"
        )
    opened = array_record if kind == "array_record" else tfrecords
    labels, read = opened(builder, config, split, image, label)
    if len(labels) not in (0, builder.info.splits[split].num_examples):
        raise ValueError(
            f"{origin} holds {len(labels)} examples, but its dataset_info.json says "
            f"{builder.info.splits[split].num_examples}; prepare it again."
        )
    return encoded.Encoded(
        count=builder.info.splits[split].num_examples,
        classes=classes,
        labels=labels if label else None,
        read=read,
        name=lambda index: f"{config.data.source}/{split}#{index}",
        origin=origin,
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


def is_remote(builder):
    return "://" in str(builder.data_path)


def check_split(builder, config, split):
    try:
        instructions = builder.info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{config.data.source} has no split {split!r}; its splits are "
            f"{', '.join(builder.info.splits)}, and parts such as train[:90%]. Set "
            "config.data.train_split and config.data.eval_split to them."
        ) from error
    if not instructions:
        raise ValueError(f"{config.data.source}: split {split!r} holds no examples.")


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


def tfrecords(builder, config, split, image, label):
    """Labels, and a function that reads one picture, of TFRecord files."""
    parts = builder.info.splits[split].file_instructions
    paths = [pathlib.Path(part.filename) for part in parts]

    def scan():
        with futures.ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda path: tfrecord.scan(path, image, label), paths)
            progress = tqdm.tqdm(found, "index", len(paths), unit="file", disable=None)
            return {
                f"{kind}{number}": array
                for number, places in enumerate(progress)
                for kind, array in places._asdict().items()
            }

    index = kept(config, paths, [image, label], scan)
    starts, ends, labels, shards = [], [], [], []
    for number, part in enumerate(parts):
        if len(index[f"start{number}"]) != part.examples_in_shard:
            raise ValueError(
                f"{part.filename} holds {len(index[f'start{number}'])} examples, "
                f"but its dataset_info.json says {part.examples_in_shard}; prepare it "
                "again."
            )
        rows = slice(part.skip, part.skip + part.take)
        starts.append(index[f"start{number}"][rows])
        ends.append(index[f"end{number}"][rows])
        labels.append(index[f"label{number}"][rows])
        shards.append(np.full(part.take, number, np.int32))
    start, end, shard = map(np.concatenate, (starts, ends, shards))
    readers = [packs.Reader(path, mapped=False) for path in paths]

    def read(index):
        return readers[shard[index]].read(int(start[index]), int(end[index]))

    return np.concatenate(labels), read


def array_record(builder, config, split, image, label):
    """The same of array_record files, which find a record by themselves."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split, deserialize_method=raw)
    parts = builder.info.splits[split].file_instructions
    paths = [pathlib.Path(part.filename) for part in parts]
    rows = [[part.skip, part.take] for part in parts]

    def labels_from(begin):
        some = records.__getitems__(range(begin, min(begin + CHUNK, len(records))))
        return [tfrecord.picture(each, 0, len(each), image, label)[2] for each in some]

    def scan():
        begins = range(0, len(records), CHUNK)
        with futures.ThreadPoolExecutor(4) as pool:
            found = pool.map(labels_from, begins)
            progress = tqdm.tqdm(found, "labels", len(begins), disable=None)
            return dict(
                label=np.array([n for some in progress for n in some], np.int32)
            )

    def read(index):
        record = records[index]
        start, end, _ = tfrecord.picture(record, 0, len(record), image, None)
        return record[start:end]

    index = kept(config, paths, [image, label, rows], scan) if label else {}
    return index.get("label", np.zeros(0, np.int32)), read


def kept(config, paths, about, scan) -> dict:
    """What `scan()` finds, from `config.data.index_dir` where it was found before.

    Valid as long as each file has the size and time it had then.
    """
    stats = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    key = hashlib.sha256(json.dumps([tfrecord.VERSION, about, stats]).encode())
    folder = pathlib.Path(config.data.index_dir).expanduser()
    path = folder / f"{paths[0].name.split('-0')[0]}-{key.hexdigest()[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(held)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # Not there, or not whole: made again.
    found = scan()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Processes may do this at once; each names its own file, the last one stays.
        with tempfile.NamedTemporaryFile(
            dir=folder, suffix=".part", delete=False
        ) as file:
            np.savez(file, **found)
        os.replace(file.name, path)
    except OSError as error:
        raise ValueError(
            f"config.data.index_dir={config.data.index_dir!r} cannot be written "
            f"({error.strerror}); the index of {paths[0].parent} is kept there. "
            "Set it to a folder of yours."
        ) from error
    return found
