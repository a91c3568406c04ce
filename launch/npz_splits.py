# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Decodes small pictures once, into an .npz per split, and subsets of the first.

    python launch/npz_splits.py --path='DIR/cifar10_{split}.tar.gz' --size=32 \
        --classes=10 --splits=train,test --subsets=tenth=5000,hundredth=500 --out=DIR

A folder or tars of class folders become OUT/train.npz and OUT/test.npz, which every
recipe reads as --config.data.path='OUT/{split}.npz' in a fraction of a second. A subset
holds the first pictures of the first split, equally many of each class.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from g2sd_jax import command, recipes
from g2sd_jax.data import source


def main(argv: Sequence[str]) -> int:
    """Writes the files; returns the exit status."""
    return command.guarded(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--path", required=True, help="as config.data.path of the recipes")
    add("--out", required=True, help="folder of the .npz files")
    add("--size", type=int, required=True, help="height and width of the pictures")
    add("--classes", type=int, required=True, help="number of class folders")
    add("--splits", default="train,test", help="the names of all splits")
    add("--subsets", default="", help="NAME=COUNT,… of the first split")
    args = parser.parse_args(argv)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    splits = args.splits.split(",")
    subsets = [item.partition("=")[::2] for item in args.subsets.split(",") if item]
    for split in splits:
        data = dict(path=args.path, train_split=split, eval_split=splits[-1])
        shape = dict(size="ti16", image_size=(args.size, args.size))
        config = recipes.load(
            "finetune",
            dict(data=data | dict(classes=args.classes), model=shape),
        )
        dataset = source.load(config, split, evaluate=True)
        arrays = dataset.fetch(np.arange(dataset.count))
        parts = [(split, dataset.count)]
        if split == splits[0]:
            parts += [(name, int(count)) for name, count in subsets]
        for name, count in parts:
            rows = {key: array[:count] for key, array in arrays.items()}
            path = out / f"{name}.npz"
            np.savez(path, **rows, classes=np.array(dataset.classes))
            print(f"{path}: {count} pictures", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
