# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Copies pictures for fast reading: `g2sd prepare --source=… --out=… --size=…`.

Every picture is turned upright and its shorter side shrunk to `--size`, once and for
all; a JPEG that is small enough already is copied as it is. What the formats cost and
lose is in `data/copies/encoding.py`. Killed at any time, the same command goes on where
it was, and ends with the same bytes. The copy is ArrayRecord files of
`tf.train.Example`s with `image`, `label` and `name`, and a manifest of classes and
counts.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import PIL
import tqdm
from PIL import features

from g2sd_jax import command, errors, json_files, recipes
from g2sd_jax.data import encoded, folder, source
from g2sd_jax.data.copies import encoding as packing
from g2sd_jax.data.copies import shards
from g2sd_jax.data.copies import source as prepared
from g2sd_jax.data.copies import writing as copies
from g2sd_jax.data.processes import threads

LEAST_SHARD = 4096  # Pictures.
MOST_SHARDS = 256  # Files that stay open while training.


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("prepare")
    add = parser.add_argument
    add(
        "--source", help="a folder, a tar, tfds:NAME or a copy; not with --verify alone"
    )
    add("--out", required=True, help="folder of the copy, made if it is not there")
    add("--size", type=int, default=256, help="of the shorter side, never enlarged")
    add("--splits", default="train,val", help="which splits, separated by commas")
    add("--format", default="jpeg", help="jpeg, or raw: pixels, never decoded again")
    add("--quality", type=int, default=90, help="of JPEG, 1 to 100")
    add("--chroma", default="420", help="of JPEG: 420, 422, 444 (every pixel's own)")
    add("--hold_out", type=float, default=0.0, help="share that evaluates, unsplit")
    add("--data_dir", default="", help="where TFDS keeps its sets")
    add("--shard", type=int, help="pictures in one file; default 4096, or in 256 files")
    add("--workers", type=int, default=len(threads.cores()), help="threads that decode")
    add("--max_bad_share", type=float, default=0.01, help="of unreadable pictures")
    add("--verify", action="store_true", help="read what is there, check every byte")
    args = parser.parse_args(argv)
    check(args)
    if args.source is None:
        verify(Path(args.out))
    else:
        run(args)
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuses values that an option does not take."""
    errors.one_of("--format", args.format, ("jpeg", "raw"))
    errors.one_of("--chroma", args.chroma, packing.CHROMA)
    for name, low, high in (
        ("size", 1, 65_500),  # JPEG's own limit.
        ("quality", 1, 100),
        ("shard", 1, 1 << 30),
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
    """Reads all of a finished copy and compares every checksum."""
    manifest = current_manifest(out)
    files = [
        file
        for split in manifest["splits"].values()
        for file in prepared.check_shards(out, split)[0]
    ]
    for file in tqdm.tqdm(files, "verify", unit="file", disable=None):
        shards.verify(file)
    print(f"{out}: all {len(files)} files are as they were written.", flush=True)


def current_manifest(out: Path) -> dict:
    """The manifest of a finished copy of ArrayRecord files."""
    manifest = prepared.read_manifest(out)
    if manifest["layout"] != prepared.LAYOUT:
        raise ValueError(
            f"--out={out} was written by an older version; --source={out} with another "
            "--out makes ArrayRecord files of it."
        )
    return manifest


def run(args: argparse.Namespace) -> None:
    """Writes the shards that are missing of the copy, then its manifest."""
    out, splits = Path(args.out), open_splits(args)
    job = describe_job(args, splits)
    with claim(out, job) as job:
        entries = {}
        try:
            for split, examples in splits.items():
                (out / split).mkdir(exist_ok=True)
                entries[split] = copies.make_split(
                    out,
                    split,
                    examples,
                    job,
                    workers=args.workers,
                    max_bad_share=args.max_bad_share,
                    verify=args.verify,
                )
            copies.finish(out, job, entries)
        except OSError as error:  # Of writing: one of reading is listed as unreadable.
            raise ValueError(
                f"--out={out}: {error.strerror or error}; finished files are kept. "
                "Make room, or mend what stands in the way, and run the same again."
            ) from error
    for split, entry in entries.items():
        print(
            f"{split}: {entry['count']} pictures of {len(entry['classes'])} classes, "
            f"{entry['unreadable']} unreadable, "
            f"{sum(shard['bytes'] for shard in entry['shards']) / 1e6:.1f} MB",
            flush=True,
        )
    print(f"Train with --config.data.source=prepared --config.data.path={out}")


def open_splits(args: argparse.Namespace) -> dict[str, encoded.Encoded]:
    """Opens the splits to be copied."""
    name = args.source if args.source.startswith("tfds:") else "folder"
    if (Path(args.source) / prepared.MANIFEST).exists():
        name = "prepared"
    overrides = {"source": name, "path": args.source, "data_dir": args.data_dir}
    overrides |= {"hold_out": args.hold_out, "classes": 0}
    overrides = {f"data.{key}": value for key, value in overrides.items()}
    if name == "prepared":  # However small: nothing is enlarged.
        overrides["model.image_size"] = (1, 1)
    config = recipes.load("pretrain", overrides)
    splits = {}
    for split in args.splits.split(","):
        files = source.files(config, split)
        for note in files.notes:
            print(note, flush=True)
        above = ""
        if name == "folder":
            above = str(folder.locate(config, split))
        elif name == "prepared":
            above = files.origin
        splits[split] = files._replace(name=relative_names(above, files.name))
    return splits


def relative_names(above: str, name: Callable[[int], str]) -> Callable[[int], str]:
    """Names without the path of the set, which may change."""
    return lambda index: name(index).removeprefix(above).lstrip("/: ")


def describe_job(
    args: argparse.Namespace, splits: Mapping[str, encoded.Encoded]
) -> dict:
    """The values that decide the bytes of a copy, which only an equal job continues."""
    largest = max(examples.count for examples in splits.values())
    return dict(
        source=args.source,
        size=args.size,
        format=args.format,
        quality=args.quality if args.format == "jpeg" else None,
        chroma=args.chroma if args.format == "jpeg" else None,
        shard=args.shard or max(LEAST_SHARD, -(-largest // MOST_SHARDS)),
        made_with=f"Pillow {PIL.__version__}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}",
        splits={split: summarise(examples) for split, examples in splits.items()},
    )


def summarise(examples: encoded.Encoded) -> dict:
    """The number of examples, and a digest of their names, labels and classes."""
    digest = hashlib.sha256(repr(examples.classes).encode())
    if examples.labels is not None:
        digest.update(examples.labels.tobytes())
    for index in range(examples.count):
        digest.update(examples.name(index).encode(errors="surrogateescape"))
    return dict(count=examples.count, sha256=digest.hexdigest())


@contextlib.contextmanager
def claim(out: Path, job: dict) -> Iterator[dict]:
    """Locks `out` for this process; yields the job as its first start wrote it."""
    manifest, unfinished = out / prepared.MANIFEST, out / prepared.UNFINISHED
    paths = set(out.iterdir()) if out.exists() else set()
    if paths - {shards.part_path(unfinished)} and not paths & {manifest, unfinished}:
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
        if manifest.exists():
            first = current_manifest(out)["job"]
        elif unfinished.exists():
            first = json_files.read(unfinished, "delete the folder, and prepare anew")
        else:
            first = job
            copies.write_atomically(unfinished, copies.to_json(job))
        there, now = errors.flatten(first), errors.flatten(job)
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
