# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a prepared copy: the shards that are missing, and last of all the manifest."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import TypeVar

import tqdm

from g2sd_jax.data import encoded
from g2sd_jax.data.copies import encoding as packing
from g2sd_jax.data.copies import shards
from g2sd_jax.data.copies import source as prepared

T = TypeVar("T")

UNREADABLE = "unreadable.jsonl"


def to_json(tree: Mapping) -> str:
    """JSON as the files of a copy hold it."""
    return json.dumps(tree, indent=1) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that it is complete or absent, also after a power failure."""
    part = shards.part_path(path)
    with open(part, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def make_split(
    out: Path,
    split: str,
    examples: encoded.Encoded,
    job: Mapping,
    *,
    workers: int,
    max_bad_share: float,
    verify: bool = False,
) -> dict:
    """Writes the shards of one split that are missing.

    Args:
        out: folder of the copy, with a folder named `split` in it.
        split: its name.
        examples: of the split.
        job: `size`, `format`, `quality`, `chroma`, and how many examples a `shard` has.
        workers: threads that decode and encode.
        max_bad_share: of unreadable pictures; more are refused.
        verify: whether to check every byte of the shards that exist.

    Returns:
        The split's entry in the manifest.
    """
    begins = range(0, examples.count, job["shard"])
    files = [
        Path(split) / f"{number:05}{shards.ENDING}" for number in range(len(begins))
    ]
    make = functools.partial(packing.try_to_encode, examples, job)
    most_bad = max_bad_share * examples.count
    bad = 0
    with (
        tqdm.tqdm(
            desc=split, total=examples.count, unit="picture", disable=None
        ) as bar,
        futures.ThreadPoolExecutor(workers) as pool,
    ):
        for file, begin in zip(files, begins, strict=True):
            indices = range(begin, min(begin + job["shard"], examples.count))
            if not is_complete(out / file, verify) or became_readable(
                shards.read_index(out / file).bad, examples, make, indices
            ):
                records = packing.map_ahead(pool, make, indices, depth=4 * workers)
                shards.write(out / file, with_progress(records, bar))
            else:
                bar.update(len(indices))
            bad += len(shards.read_index(out / file).bad)
            if bad > most_bad:
                raise ValueError(
                    too_many_unreadable(out / file, bad, examples.count, max_bad_share)
                )
    return dict(
        count=examples.count - bad,
        unreadable=bad,
        classes=list(examples.classes),
        labelled=examples.labels is not None,
        shards=[
            dict(
                file=file.as_posix(),
                bytes=(out / file).stat().st_size,
                sha256=shards.read_index(out / file).sha256,
            )
            for file in files
        ],
    )


def is_complete(path: Path, thoroughly: bool) -> bool:
    """Whether a shard exists and is intact, `thoroughly` by its sha256.

    One that is not is written again.
    """
    try:
        sizes_agree = shards.read_index(path).bytes == path.stat().st_size
        if thoroughly:
            shards.verify(path)
    except (FileNotFoundError, ValueError):
        return False
    return sizes_agree


def became_readable(
    bad: Sequence[tuple[str, str]],
    examples: encoded.Encoded,
    make: Callable[[int], tuple],
    indices: Iterable[int],
) -> bool:
    """Whether a picture that a shard lacks can be read by now.

    Args:
        bad: (name, reason) of the pictures it lacks.
        examples: of the split.
        make: index -> (name, label, record), as `packing.try_to_encode`.
        indices: of the examples that belong into the shard.
    """
    names = {name for name, _ in bad}
    retried = (index for index in indices if names and examples.name(index) in names)
    return any(not isinstance(make(index)[2], Exception) for index in retried)


def with_progress(items: Iterable[T], bar: tqdm.tqdm) -> Iterator[T]:
    """Yields the items, and advances the bar after each."""
    for item in items:
        yield item
        bar.update()


def too_many_unreadable(file: Path, bad: int, count: int, most: float) -> str:
    """The message for `bad` unreadable pictures of `count`, the last ones in `file`."""
    name, reason = shards.read_index(file).bad[-1]
    return (
        f"{bad} of {count} pictures cannot be read, which is more than --max_bad_share="
        f"{most}; the last one is {name}: {reason}. Mend the source, or "
        "allow more."
    )


def finish(out: Path, job: Mapping, entries: Mapping[str, dict]) -> None:
    """Lists the unreadable pictures, then writes the manifest, last of all.

    Args:
        out: folder of the copy.
        job: what decides the bytes of the copy.
        entries: {split: its entry in the manifest}, of `make_split`.
    """
    lines = [
        json.dumps(dict(split=split, name=name, reason=reason)) + "\n"
        for split, entry in entries.items()
        for shard in entry["shards"]
        for name, reason in shards.read_index(out / shard["file"]).bad
    ]
    for torn in out.glob("*/*.part"):
        torn.unlink()
    write_atomically(out / UNREADABLE, "".join(lines))
    manifest = dict(layout=prepared.LAYOUT, job=job, splits=entries)
    write_atomically(out / prepared.MANIFEST, to_json(manifest))
    (out / prepared.UNFINISHED).unlink(missing_ok=True)
