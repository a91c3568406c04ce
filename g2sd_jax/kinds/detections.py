# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector finds in pictures: drawn over them, and as COCO's results."""

import collections
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from g2sd_jax import kinds, outlines, palette, parallel, summary, workdir
from g2sd_jax.data import files
from g2sd_jax.data.coco import run_lengths
from g2sd_jax.data.coco import source as coco
from g2sd_jax.evaluators import instances
from g2sd_jax.kinds import overlays

FOLDER = "detections"  # In the workdir, if no other one is named.
RESULTS = "results.json"  # As COCO's evaluation reads them.
DRAWN = 0.5  # Score from which an instance is drawn; the results have all.
PICTURES = (
    kinds.Pictures(
        title="What {name} learned from first",
        pattern=summary.PICTURE,
        alt="pictures and their objects",
        source="{file}, which the run left at its start.",
    ),
    kinds.Pictures(
        title="What {name} finds",
        pattern=f"{FOLDER}/*.{overlays.ENDINGS['drawn']}",
        alt="boxes, masks, names and scores",
        source="{file}: all above a score of " + f"{DRAWN:g}.",
        most=8,
    ),
)


def answers(
    model: kinds.Finished, images: Sequence[str], out: str
) -> list[kinds.Answer]:
    """Draws what is found in each picture, and writes `RESULTS`, into a folder.

    Args:
        model: of a detector.
        images: files.
        out: the folder, "" for `FOLDER` in the workdir.
    """
    folder = overlays.folder_of(model.source, out, FOLDER, RESULTS)
    stems, ids = overlays.stems(images), image_ids(images)
    names = tuple(model.describe.get("class_names") or ())
    category_ids = model.describe.get("category_ids")
    sentences, results = [], []
    for path, pixels, found_here in detect(model, images):
        os.makedirs(folder, exist_ok=True)
        drawn = os.path.join(folder, f"{stems[path]}.{overlays.ENDINGS['drawn']}")
        draw(pixels, found_here, names).save(drawn)
        results += to_results(found_here, ids[path], category_ids, path)
        sentences.append(kinds.Answer(path, f"{sentence(found_here, names)}; {drawn}"))
    if sentences:
        workdir.write_json(os.path.join(folder, RESULTS), results)
    return sentences


def detect(
    model: kinds.Finished, images: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, instances.Instances]]:
    """Yields path, pixels [h, w, C] and the instances of each picture."""
    config, evaluator = model.config, model.stage.evaluators["eval"]
    frozen, apply = model.frozen(evaluator), jax.jit(evaluator.predict)
    variables, canvas = jax.device_put(model.variables), coco.Canvas(config)
    originals = files.originals(config, images, parallel.print_once)
    rows = min(config.batch, len(images))
    while chosen := list(itertools.islice(originals, rows)):
        batch = canvas.empty(rows, targets=False)
        for row in range(rows):
            _, pixels = chosen[min(row, len(chosen) - 1)]
            canvas.place(batch, row, pixels, (), None, row)
        valid = np.arange(rows) < len(chosen)
        batch |= dict(valid=valid, index=np.arange(rows, dtype=np.int32))
        outputs = jax.device_get(apply(variables, frozen, batch))
        for (path, pixels), answer in zip(
            chosen, instances.rows(outputs, len(chosen)), strict=True
        ):
            yield path, pixels, instances.restore(answer, pixels.shape[:2])


def image_ids(images: Sequence[str]) -> dict[str, int]:
    """The number that stands for each file in results.

    COCO's names are the ids of its pictures, with zeros before them; where a name is no
    number, all files are numbered from 1 as they are listed.
    """
    bases = [os.path.splitext(os.path.basename(path))[0] for path in images]
    numbers = range(1, len(images) + 1)
    if all(base.isdecimal() for base in bases):
        numbers = map(int, bases)
    return dict(zip(images, numbers, strict=True))


def to_results(
    found_here: instances.Instances,
    image_id: int,
    category_ids: Sequence[int] | None,
    path: str,
) -> list[dict]:
    """The instances of a picture as entries of COCO's results.

    Args:
        found_here: in the picture.
        image_id: its number.
        category_ids: of labels 0..C-1 in the json that was trained on; None counts
            from 1.
        path: of the file, which is told beside the number.
    """
    entries = []
    for label, score, box, mask in zip(*found_here, strict=True):
        x1, y1, x2, y2 = box.tolist()
        key = int(label) + 1 if category_ids is None else category_ids[int(label)]
        segmentation = dict(size=list(mask["size"]), counts=mask["counts"].decode())
        entries.append(
            dict(
                image_id=image_id,
                category_id=key,
                bbox=[round(side, 2) for side in (x1, y1, x2 - x1, y2 - y1)],
                score=round(float(score), 5),
                segmentation=segmentation,
                file_name=path,
            )
        )
    return entries


def draw(
    pixels: np.ndarray, found_here: instances.Instances, names: Sequence[str]
) -> Image.Image:
    """Draws boxes, masks, names and scores of the instances above `DRAWN`.

    Args:
        pixels: [H, W, C] uint8.
        found_here: in them.
        names: of the classes; () shows their numbers.
    """
    drawn = []
    for label, score, box, mask in zip(*found_here, strict=True):
        if score < DRAWN:
            continue
        name = palette.drawable_name(summary.name_of(label, names), label)
        drawn.append(
            outlines.Outline(
                label=int(label),
                box=box,
                mask=run_lengths.decode(mask).astype(bool),
                words=f"{name} {score:.2f}",
            )
        )
    return outlines.draw(pixels, drawn)


def sentence(found_here: instances.Instances, names: Sequence[str]) -> str:
    """`cat 2, dog 1 (3 of 17 detections above 0.5)`."""
    sure = found_here.scores >= DRAWN
    counts: Mapping[int, int] = collections.Counter(found_here.labels[sure].tolist())
    listed = ", ".join(
        f"{summary.name_of(label, names)} {count}"
        for label, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    shares = f"{sure.sum()} of {len(sure)} detections above {DRAWN:g}"
    return f"{listed or 'nothing'} ({shares})"
