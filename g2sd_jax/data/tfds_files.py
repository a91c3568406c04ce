# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Random access to the files of a prepared TFDS set, and the labels of all of it.

Each function takes the recipe, a `tfds_source.Found` and the split's name, and returns
`(labels, read)`: [N] int32, or None or [0] where there are none, and `read(index)`, the
encoded picture.
"""

import functools
import hashlib
import json
import os
import pathlib
import tempfile
import zipfile
from concurrent import futures

import numpy as np
import tqdm

from g2sd_jax.data import packs, tfrecord

CHUNK = 1000  # Records of array_record files that one thread reads at a time.


def tfrecords(config, found, split):
    """Labels, and a function that reads one picture, of TFRecord files."""
    paths = found.paths

    def scan():
        look = functools.partial(tfrecord.scan, image=found.image, label=found.label)
        with futures.ThreadPoolExecutor(4) as pool:
            places = pool.map(look, paths)
            progress = tqdm.tqdm(places, "index", len(paths), unit="file", disable=None)
            return {
                f"{kind}{number}": array
                for number, each in enumerate(progress)
                for kind, array in each._asdict().items()
            }

    index = kept(config, paths, [found.image, found.label], scan)
    for number, part in enumerate(found.parts):
        if len(index[f"start{number}"]) != part.examples_in_shard:
            raise ValueError(
                f"{part.filename} holds {len(index[f'start{number}'])} examples, "
                f"but its dataset_info.json says {part.examples_in_shard}; prepare it "
                "again."
            )

    def whole(kind):
        arrays = [
            index[f"{kind}{number}"][part.skip : part.skip + part.take]
            for number, part in enumerate(found.parts)
        ]
        return np.concatenate(arrays)

    start, end, labels = map(whole, ("start", "end", "label"))
    shard = np.repeat(np.arange(len(paths)), [part.take for part in found.parts])
    readers = [packs.Reader(path, mapped=False) for path in paths]

    def read(index):
        return readers[shard[index]].read(int(start[index]), int(end[index]))

    return labels, read


def array_records(config, found, split):
    """The same of array_record files, which find a record by themselves."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = found.builder.as_data_source(split, deserialize_method=raw)

    def labels_from(begin):
        some = records.__getitems__(range(begin, min(begin + CHUNK, len(records))))
        spans = ((0, len(record), found.image, found.label) for record in some)
        pairs = zip(some, spans, strict=True)
        return [tfrecord.picture(record, *span)[2] for record, span in pairs]

    def scan():
        begins = range(0, len(records), CHUNK)
        with futures.ThreadPoolExecutor(4) as pool:
            chunks = tqdm.tqdm(
                pool.map(labels_from, begins), "labels", len(begins), disable=None
            )
            return dict(label=np.array([n for some in chunks for n in some], np.int32))

    def read(index):
        record = records[index]
        start, end, _ = tfrecord.picture(record, 0, len(record), found.image, None)
        return record[start:end]

    if found.label is None:
        return None, read
    rows = [[part.skip, part.take] for part in found.parts]
    index = kept(config, found.paths, [found.image, found.label, rows], scan)
    return index["label"], read


OPENED = {"tfrecord": tfrecords, "array_record": array_records}


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
