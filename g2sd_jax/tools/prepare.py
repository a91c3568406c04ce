# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Packs a set of pictures for fast reading: `g2sd prepare --source=… --out=… --size=…`.

Every picture is turned upright and its shorter side shrunk to `--size`, once and for
all; a JPEG that is small enough already is copied as it is. What the formats cost and
lose is in `data/packing.py`. Killed at any time, the same command goes on where it was,
and ends with the same bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL
import tqdm
from PIL import features

from g2sd_jax import cli, core, recipes
from g2sd_jax.data import copies, folder, packing, packs, prepared, source, threads

LEAST_PACK, MOST_PACKS = 4096, 256  # Pictures; files that stay open while training.


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("prepare")
    add = parser.add_argument
    add("--source", help="a folder, a tar, or tfds:NAME; not with --verify alone")
    add("--out", required=True, help="folder of the copy, made if it is not there")
    add("--size", type=int, default=256, help="of the shorter side, never enlarged")
    add("--splits", default="train,val", help="which splits, separated by commas")
    add("--format", default="jpeg", help="jpeg, or raw: pixels, never decoded again")
    add("--quality", type=int, default=90, help="of JPEG, 1 to 100")
    add("--chroma", default="420", help="of JPEG: 420, 422, 444 (every pixel's own)")
    add("--hold_out", type=float, default=0.0, help="share that evaluates, unsplit")
    add("--data_dir", default="", help="where TFDS keeps its sets")
    add("--pack", type=int, help="pictures in one file; default 4096, or in 256 files")
    add("--workers", type=int, default=len(threads.cores()), help="threads that decode")
    add("--max_bad_share", type=float, default=0.01, help="of unreadable pictures")
    add("--verify", action="store_true", help="read what is there, check every byte")
    args = parser.parse_args(argv)
    check(args)
    if args.source is None:
        verify(Path(args.out).expanduser())
    else:
        run(args)
    return 0


def check(args) -> None:
    """Refuses what is no number or name that the options take."""
    core.one_of("--format", args.format, ("jpeg", "raw"))
    core.one_of("--chroma", args.chroma, packing.CHROMA)
    for name, low, high in (
        ("size", 1, 65_500),  # JPEG's own limit.
        ("quality", 1, 100),
        ("pack", 1, 1 << 30),
        ("workers", 1, 1024),
        ("max_bad_share", 0, 1),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name}={value} has to be {low} to {high}.")
    if args.source is None and not args.verify:
        raise ValueError(
            "--source is missing: a folder, a tar, or tfds:NAME (only --verify of a "
            "finished --out goes without)."
        )


def verify(out: Path) -> None:
    """Reads a finished copy whole and compares every checksum."""
    manifest = prepared.read_manifest(out)
    files = [
        file
        for split in manifest["splits"].values()
        for file in prepared.check(out, split)
    ]
    for file in tqdm.tqdm(files, "verify", unit="file", disable=None):
        packs.verify(file)
    print(f"{out}: all {len(files)} packs are as they were written.", flush=True)


def run(args) -> None:
    """Makes what is missing of the copy, then writes its manifest."""
    out, splits = Path(args.out).expanduser(), sets(args)
    job = describe(args, splits)
    with claimed(out, job) as job:
        told = {}
        ways = dict(workers=args.workers, verify=args.verify)
        ways |= dict(max_bad_share=args.max_bad_share)
        try:
            for split, examples in splits.items():
                (out / split).mkdir(exist_ok=True)
                told[split] = copies.make_split(out, split, examples, job, **ways)
            copies.finish(out, job, told)
        except OSError as error:  # Of writing: a picture's own is listed as unreadable.
            raise ValueError(
                f"--out={out}: {error.strerror or error}; finished packs are kept. "
                "Make room, or mend what stands in the way, and run the same again."
            ) from error
    for split, about in told.items():
        print(
            f"{split}: {about['count']} pictures of {len(about['classes'])} classes, "
            f"{about['unreadable']} unreadable, "
            f"{sum(pack['bytes'] for pack in about['packs']) / 1e6:.1f} MB",
            flush=True,
        )
    print(f"Train with --config.data.source=prepared --config.data.path={out}")


def sets(args) -> dict:
    """The splits to be packed, as random access to encoded pictures."""
    name = args.source if args.source.startswith("tfds:") else "folder"
    overrides = {"source": name, "path": args.source, "data_dir": args.data_dir}
    overrides |= {"hold_out": args.hold_out, "classes": 0}
    overrides = {f"data.{key}": value for key, value in overrides.items()}
    config = recipes.load("pretrain", overrides)
    found = {}
    for split in args.splits.split(","):
        held = source.files(config, split)
        root = str(folder.located(config, split)) if name == "folder" else ""
        found[split] = held._replace(name=named_below(root, held.name))
    return found


def named_below(root, name):
    """Names without where the set lies, which may change."""
    return lambda index: name(index).removeprefix(root).lstrip("/:")


def describe(args, splits) -> dict:
    """What decides the bytes of the copy; a copy is only continued by the same."""
    largest = max(examples.count for examples in splits.values())
    return dict(
        source=args.source,
        size=args.size,
        format=args.format,
        quality=args.quality if args.format == "jpeg" else None,
        chroma=args.chroma if args.format == "jpeg" else None,
        pack=args.pack or max(LEAST_PACK, -(-largest // MOST_PACKS)),
        made_with=f"Pillow {PIL.__version__}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}",
        splits={split: listing(examples) for split, examples in splits.items()},
    )


def listing(examples) -> dict:
    """How many examples there are, and a digest of their names, labels and classes."""
    digest = hashlib.sha256(repr(examples.classes).encode())
    if examples.labels is not None:
        digest.update(examples.labels.tobytes())
    for index in range(examples.count):
        digest.update(examples.name(index).encode(errors="surrogateescape"))
    return dict(count=examples.count, sha256=digest.hexdigest())


@contextlib.contextmanager
def claimed(out: Path, job: dict) -> Iterator[dict]:
    """Holds `out` for this process; yields the job as its first start wrote it."""
    known = [out / prepared.MANIFEST, out / prepared.UNFINISHED]
    held = set(out.iterdir()) if out.exists() else set()
    if held - {copies.part_of(known[1])} and not held & set(known):
        raise ValueError(
            f"--out={out} holds something else; give an empty folder or a new one."
        )
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--out={out}: another `g2sd prepare` is at it.") from None
        if known[0].exists():
            first = prepared.read_manifest(out)["job"]
        elif known[1].exists():
            first = json.loads(known[1].read_text(encoding="utf-8"))
        else:
            first = job
            copies.write_whole(known[1], copies.to_text(job))
        there, now = core.flatten(first), core.flatten(job)
        different = [
            f"{key} {there.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted({*there, *now} - {"source"})
            if there.get(key) != now.get(key)
        ]
        if different:
            raise ValueError(
                f"--out={out} was begun as another copy: {'; '.join(different)}. Use "
                "the same options, or another --out."
            )
        yield first
    finally:
        os.close(descriptor)
