# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A finished run as other tools load it: `g2sd export --workdir=W --format=F`."""

import argparse
import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from g2sd_jax import checkpoint, command, errors, finished, kinds, parallel
from g2sd_jax.weights import loading


def main(argv: Sequence[str]) -> int:
    formats = kinds.formats()
    parser = command.Parser("export")
    parser.add_argument(
        "--workdir", required=True, help="a finished run, or a weight file"
    )
    parser.add_argument("--format", required=True, help=" ".join(formats))
    parser.add_argument(
        "--out", default="", help="folder to write to (default: WORKDIR/export/FORMAT)"
    )
    parser.add_argument(
        "--readout",
        default="",
        help="of two heads, which answer counts: cls, dist or mean (default: as "
        "config.model.readout says, which the run was evaluated with)",
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", default="", help=f"{name} of the channels, where none is told"
        )
    args = parser.parse_args(argv)
    errors.one_of("--format", args.format, formats)
    weights = loading.read(args.workdir, "--workdir")
    name = kinds.name_of(weights)
    kind = kinds.by_name(name)
    if args.format in kind.refusals:
        raise ValueError(
            f"--format={args.format} takes no {name}: {kind.refusals[args.format]}."
        )
    options = kinds.ExportOptions(
        config=lambda: run_config(args.workdir),
        readout=args.readout,
        mean=args.mean,
        std=args.std,
    )
    model = kind.prepare(weights, options)
    write = errors.lookup("--format", args.format, kind.formats)
    folder = args.out or _default_folder(args)
    with made_folder(folder):
        paths = write(model, folder)
    for path in paths:
        parallel.print_once(f"{path}: {os.path.getsize(path):,} bytes")
    return 0


@contextlib.contextmanager
def made_folder(folder: str) -> Iterator[None]:
    """Makes a folder; after a failure it goes again, unless something lies in it."""
    places = (folder, *map(str, pathlib.Path(folder).parents))
    missing = [place for place in places if not os.path.exists(place)]
    os.makedirs(folder, exist_ok=True)
    try:
        yield
    except BaseException:
        for place in missing:  # The deepest first.
            with contextlib.suppress(OSError):
                os.rmdir(place)
        raise


def run_config(path: str) -> ConfigDict | None:
    """The config of a run, None of a weight file."""
    return None if os.path.isfile(path) else finished.config_of(path)


def _default_folder(args: argparse.Namespace) -> str:
    root, _ = checkpoint.split_step(args.workdir)
    if not os.path.isdir(os.path.join(root, checkpoint.FOLDER)):
        raise ValueError(f"--workdir={args.workdir!r} is no run: say where --out is.")
    return os.path.join(root, "export", args.format)
