# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What pictures show: `g2sd predict IMAGE… --workdir=DIR`.

Size, normalisation and class names are those of the checkpoint. A classifier names each
picture, a segmentor draws the classes of its pixels over it (`overlay`).
"""

import json
from collections.abc import Sequence

import jax
import numpy as np
from scipy import special

from g2sd_jax import cli, core
from g2sd_jax.data import files
from g2sd_jax.tools import finished, overlay

FIRST = 5  # Classes that are printed.


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("predict")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--out",
        default="",
        help="file for all answers, as JSON; of a segmentor, the folder of its "
        f"overlays (default: WORKDIR/{overlay.FOLDER})",
    )
    args = finished.parse(parser, argv)
    if args.finished.segments:
        answers = overlay.write(args.finished, args.images, args.out)
        for answer in answers:
            print(f"{answer['image']}: {told(answer['shares'])}; {answer['drawn']}")
        missed = set(args.images) - {answer["image"] for answer in answers}
        if missed:
            raise ValueError(
                f"{len(missed)} of {len(args.images)} pictures could not be read: "
                f"{core.few(missed)}; repair or remove them."
            )
        return 0
    answers = predict(args.finished, args.images)
    for answer in answers:
        print(f"{answer['image']}: {told(answer['probabilities'])}")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(answers, file, indent=2)
    return 0


def told(found: dict[str, float]) -> str:
    """The largest shares or probabilities, by name."""
    first = sorted(found.items(), key=lambda item: -item[1])[:FIRST]
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in first)


def predict(model: finished.Finished, images: Sequence[str]) -> list[dict]:
    """The answers of a classifier's own evaluator, one dict per picture."""
    evaluator = model.stage.evaluators.get("eval")
    if evaluator is None:
        raise ValueError(
            f"{model.source} is a run of stage {model.config.stage}, which names "
            "nothing; g2sd reconstruct shows what an autoencoder guesses, g2sd embed "
            "writes its features."
        )
    names = tuple(model.describe.get("class_names") or ())
    frozen = model.frozen(evaluator)
    ask = jax.jit(evaluator.predict)
    answers = []
    for batch, chosen in batches(model, images):
        outputs = jax.device_get(ask(model.variables, frozen, batch))
        tell = core.lookup(f"answer of {model.config.stage}", *outputs, ANSWERS)
        answers += tell(*outputs.values(), chosen, names)
    return answers


def batches(model: finished.Finished, images: Sequence[str], whole: bool = False):
    """Yields padded batches as evaluation has them, and the names of their pictures.

    Args:
        model: whose size, channels and batch are used.
        images: files.
        whole: all in one batch.
    """
    config = model.config
    rows = len(images) if whole else min(config.batch, len(images))
    for first in range(0, len(images), rows):
        chosen = images[first : first + rows]
        image = files.read(config, chosen)
        at = np.minimum(np.arange(rows), len(chosen) - 1)
        valid = np.arange(rows) < len(chosen)
        yield dict(image=image[at], valid=valid, index=at.astype(np.int32)), chosen


def named(logits, images, names) -> list[dict]:
    """Probabilities by class name of [B, C] logits."""
    probabilities = special.softmax(logits.astype(np.float64), axis=-1)
    names = names or tuple(map(str, range(logits.shape[-1])))
    return [
        {
            "image": image,
            "class": names[int(row.argmax())],
            "probabilities": dict(zip(names, row.tolist(), strict=True)),
        }
        for image, row in zip(images, probabilities, strict=False)
    ]


ANSWERS = {"logits": named}  # What an evaluator's `predict` gives: how it is told.
