# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Copies the first pictures of a COCO set whose objects are all large enough.

    python launch/coco_subset.py --path=DIR --images='images_{split}.tar' \
        --annotations='instances_{split}.json' --canvas=256 --least=32 --count=16 \
        --out=sixteen

A detector that does not learn so few large objects by heart has a bug; docs/results.md
says how they are trained on. OUT/train.json and OUT/train/ hold the pictures and their
annotations as they are, so that they need no config.data.images but `{split}`.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from g2sd_jax import command, recipes
from g2sd_jax.data.coco import annotations as coco_json
from g2sd_jax.data.coco import source as coco


def main(argv: Sequence[str]) -> int:
    """Writes the files; returns the exit status."""
    return command.guarded(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--path", required=True, help="as config.data.path of the recipes")
    add("--images", required=True, help="as config.data.images")
    add("--annotations", required=True, help="as config.data.annotations")
    add("--split", default="train", help="what {split} stands for")
    add("--canvas", type=int, default=256, help="side that a picture is fitted into")
    add("--least", type=int, default=32, help="side of a square on the canvas that no "
        "object's box is smaller than")  # fmt: skip
    add("--count", type=int, default=16, help="of pictures, by ascending id")
    add("--out", required=True, help="folder of the copies")
    args = parser.parse_args(argv)
    keys = {key: getattr(args, key) for key in ("path", "images", "annotations")}
    canvas = (args.canvas, args.canvas)
    config = recipes.load(
        "finetune:task=detection", dict(data=keys, model=dict(image_size=canvas))
    )
    annotations, files = coco.list_pictures(config, args.split)
    objects = coco.list_objects(annotations.images, canvas)
    small = objects.sides.prod(axis=-1) < args.least**2
    rows = sorted(set(objects.examples) - set(objects.examples[small]))
    if len(rows) < args.count:
        raise ValueError(
            f"--count={args.count}, but only {len(rows)} of {files.count} "
            f"pictures have objects of {args.least} x {args.least} pixels or more, "
            "and no smaller ones."
        )
    out = pathlib.Path(args.out)
    for row in rows[: args.count]:
        path = out / "train" / annotations.images[row].name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files.read(row))
    ids = {annotations.images[row].id for row in rows[: args.count]}
    content = dict(coco_json.load(coco.locate(config, "annotations", args.split)))
    for key, name in (("images", "id"), ("annotations", "image_id")):
        content[key] = [entry for entry in content[key] if entry[name] in ids]
    (out / "train.json").write_text(json.dumps(content))
    print(
        f"{out}: {args.count} of {len(rows)} such pictures, with "
        f"{len(content['annotations'])} annotations",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
