# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writing a prepared copy: the packs that are missing, then its manifest, last."""

import functools
import json
import os
from concurrent import futures
from pathlib import Path

import tqdm

from g2sd_jax.data import packing, packs, prepared

UNREADABLE = "unreadable.jsonl"


def to_text(tree) -> str:
    return json.dumps(tree, indent=1) + "\n"


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def write_whole(path: Path, text: str) -> None:
    """A file that is there whole or not at all, also when the power fails."""
    part = part_of(path)
    with open(part, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def make_split(
    out: Path, split, examples, job, *, workers, max_bad_share, verify=False
) -> dict:
    """Packs what is missing of one split; returns what the manifest says of it.

    Args:
        out: folder of the copy; the split's own is in it.
        split: its name.
        examples: an `encoded.Encoded`.
        job: `size`, `format`, `quality`, `chroma`, and `pack`, the examples of a pack.
        workers: threads that decode and encode.
        max_bad_share: of unreadable pictures; more are refused.
        verify: whether packs that are there are read whole before they are kept.
    """
    begins = range(0, examples.count, job["pack"])
    files = [Path(split) / f"{number:05}.pack" for number in range(len(begins))]
    make = functools.partial(packing.attempt, examples, job)
    most_bad = max_bad_share * examples.count
    bad = 0
    with (
        tqdm.tqdm(
            desc=split, total=examples.count, unit="picture", disable=None
        ) as bar,
        futures.ThreadPoolExecutor(workers) as pool,
    ):
        for file, begin in zip(files, begins, strict=True):
            wanted = range(begin, min(begin + job["pack"], examples.count))
            if not is_whole(out / file, verify) or is_mended(
                packs.index(out / file).bad, examples, make, wanted
            ):
                made = packing.ahead(pool, make, wanted, depth=4 * workers)
                packs.write(out / file, counted(made, bar))
            else:
                bar.update(len(wanted))
            bad += len(packs.index(out / file).bad)
            if bad > most_bad:
                raise ValueError(
                    too_many(out / file, bad, examples.count, max_bad_share)
                )
    return dict(
        count=examples.count - bad,
        unreadable=bad,
        classes=list(examples.classes),
        labelled=examples.labels is not None,
        packs=[
            dict(
                file=file.as_posix(),
                bytes=(out / file).stat().st_size,
                sha256=packs.digest(out / file),
            )
            for file in files
        ],
    )


def is_whole(path: Path, thoroughly: bool) -> bool:
    """Whether a pack can be kept; one that cannot is made again."""
    try:
        packs.index(path)
        if thoroughly:
            packs.verify(path)
    except (FileNotFoundError, ValueError):
        return False
    return True


def is_mended(bad, examples, make, wanted) -> bool:
    """Whether a picture that a pack lacks can be read by now."""
    names = {name for name, _ in bad}
    again = (index for index in wanted if names and examples.name(index) in names)
    return any(not isinstance(make(index)[2], Exception) for index in again)


def counted(items, bar):
    for item in items:
        yield item
        bar.update()


def too_many(file, bad, count, most):
    name, reason = packs.index(file).bad[-1]
    return (
        f"{bad} of {count} pictures cannot be read, which is more than --max_bad_share="
        f"{most}; the last one is {name}: {reason}. Mend the source, or "
        "allow more."
    )


def finish(out: Path, job: dict, told: dict) -> None:
    """Lists what was unreadable, then writes the manifest, last of all."""
    lines = [
        json.dumps(dict(split=split, name=name, reason=reason)) + "\n"
        for split, about in told.items()
        for pack in about["packs"]
        for name, reason in packs.index(out / pack["file"]).bad
    ]
    for torn in out.glob("*/*.pack.part"):
        torn.unlink()
    write_whole(out / UNREADABLE, "".join(lines))
    manifest = dict(layout=prepared.LAYOUT, job=job, splits=told)
    write_whole(out / prepared.MANIFEST, to_text(manifest))
    (out / prepared.UNFINISHED).unlink(missing_ok=True)
