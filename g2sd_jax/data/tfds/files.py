# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Random access to the files of a prepared TFDS set, and its labels.

Each function of `OPENERS` takes the recipe, a `PreparedSplit` and the name of the
split, and returns an `Opened`.
"""

import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from g2sd_jax.data import array_records, reading
from g2sd_jax.data.memory import arrays
from g2sd_jax.data.tfds import tfrecord

CHUNK = 1000  # Records of array_record files that one thread reads at a time.


class PreparedSplit(NamedTuple):
    """One split of a prepared set."""

    builder: Any  # The `tfds.core.DatasetBuilder` of the set.
    parts: list  # TFDS's file instructions: filename, skip, take, examples_in_shard.
    image: str  # The feature with the encoded picture.
    label: str | None  # The feature with the class.
    classes: tuple[str, ...]  # Names in label order.
    origin: str  # What an error calls the split.

    @property
    def kind(self) -> str:
        """The format of the files, such as tfrecord."""
        return self.builder.info.file_format.value

    @property
    def remote(self) -> bool:
        """Whether the files lie elsewhere than on a local disk."""
        return is_remote(self.builder.data_path)

    @property
    def paths(self) -> list[pathlib.Path]:
        """The local files of the split."""
        return [pathlib.Path(part.filename) for part in self.parts]


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as gs://…."""
    return "://" in str(path)


class Opened(NamedTuple):
    """Random access to the encoded pictures of a split."""

    labels: np.ndarray | None  # [N] int32, or None or [0] where there are none.
    places: Sequence[Any]
    reader: reading.Reader


def open_tfrecords(
    config: ConfigDict,
    prepared_split: PreparedSplit,
    split: str,
) -> Opened:
    """Opens TFRecord files, through an index of where the pictures lie."""
    paths = prepared_split.paths

    def scan():
        look = functools.partial(
            tfrecord.scan, image=prepared_split.image, label=prepared_split.label
        )
        with futures.ThreadPoolExecutor(4) as pool:
            scans = pool.map(look, paths)
            progress = tqdm.tqdm(scans, "index", len(paths), unit="file", disable=None)
            return {
                f"{kind}{number}": array
                for number, places in enumerate(progress)
                for kind, array in places._asdict().items()
            }

    index = cached_index(
        config, paths, [prepared_split.image, prepared_split.label], scan
    )
    for number, part in enumerate(prepared_split.parts):
        if len(index[f"start{number}"]) != part.examples_in_shard:
            raise ValueError(
                f"{part.filename} holds {len(index[f'start{number}'])} examples, "
                f"but its dataset_info.json says {part.examples_in_shard}; prepare it "
                "again."
            )

    def joined(kind):
        parts = [
            index[f"{kind}{number}"][part.skip : part.skip + part.take]
            for number, part in enumerate(prepared_split.parts)
        ]
        return np.concatenate(parts)

    start, end, labels = map(joined, ("start", "end", "label"))
    shard = np.repeat(
        np.arange(len(paths)), [part.take for part in prepared_split.parts]
    )
    table = reading.SpanTable(shard, start, end)
    return Opened(labels, table, reading.Spans(paths))


def open_array_records(
    config: ConfigDict,
    prepared_split: PreparedSplit,
    split: str,
) -> Opened:
    """Opens array_record files, which have an index of their own."""
    records = array_records.open_files(prepared_split.parts)
    places = range(len(records))
    reader = array_records.Pictures(records, prepared_split.image)

    def labels_from(begin):
        some = records.__getitems__(range(begin, min(begin + CHUNK, len(records))))
        spans = (
            (0, len(record), prepared_split.image, prepared_split.label)
            for record in some
        )
        pairs = zip(some, spans, strict=True)
        return [tfrecord.locate_picture(record, *span)[2] for record, span in pairs]

    def scan():
        begins = range(0, len(records), CHUNK)
        with futures.ThreadPoolExecutor(4) as pool:
            chunks = tqdm.tqdm(
                pool.map(labels_from, begins), "labels", len(begins), disable=None
            )
            return dict(label=np.array([n for some in chunks for n in some], np.int32))

    if prepared_split.label is None:
        return Opened(None, places, reader)
    rows = [[part.skip, part.take] for part in prepared_split.parts]
    index = cached_index(
        config,
        prepared_split.paths,
        [prepared_split.image, prepared_split.label, rows],
        scan,
    )
    return Opened(index["label"], places, reader)


OPENERS = {"tfrecord": open_tfrecords, "array_record": open_array_records}


def cached_index(
    config: ConfigDict,
    paths: Sequence[pathlib.Path],
    about: Sequence,
    scan: Callable[[], Mapping[str, np.ndarray]],
) -> Mapping[str, np.ndarray]:
    """Reads the arrays of an index from `config.data.index_dir`, or makes them.

    An index is valid as long as each file has the same size and time.

    Args:
        config: the recipe.
        paths: of the indexed files.
        about: what else the arrays depend on, in JSON types.
        scan: makes the arrays.
    """
    stats = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    key = hashlib.sha256(json.dumps([tfrecord.VERSION, about, stats]).encode())
    folder = pathlib.Path(config.data.index_dir)
    path = folder / f"{paths[0].name.split('-0')[0]}-{key.hexdigest()[:24]}.npz"
    try:
        return arrays.read_npz(path)
    except ValueError:
        pass  # Absent or incomplete.
    index = scan()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Processes may do this at once; each names its own file, the last one stays.
        with tempfile.NamedTemporaryFile(
            dir=folder, suffix=".part", delete=False
        ) as file:
            np.savez(file, **index)
        os.replace(file.name, path)
    except OSError as error:
        raise ValueError(
            f"config.data.index_dir={config.data.index_dir!r} cannot be written "
            f"({error.strerror}); the index of {paths[0].parent} is kept there. "
            "Set it to a folder of yours."
        ) from error
    return index
