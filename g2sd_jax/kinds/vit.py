# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The classifier: names the class of a picture."""

import json
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from scipy import special

from g2sd_jax import command, kinds
from g2sd_jax.kinds import encoders
from g2sd_jax.models import layers, vit
from g2sd_jax.weights import architecture


def module(model: kinds.Finished) -> vit.Vit:
    """The classifier's module."""
    config = model.config
    options = layers.compute_options(config)
    # Data without labels have no classes, but their teacher had.
    classes = config.data.classes or model.describe.get("classes", 0)
    return vit.classifier(config.model, classes, **options)


def answers(
    model: kinds.Finished, images: Sequence[str], out: str
) -> list[kinds.Answer]:
    """Names the class of each picture; `out` is a JSON file for all probabilities."""
    command.check_output(out)
    rows = list(predict(model, images))
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
    return [
        kinds.Answer(row["image"], kinds.most_likely(row["probabilities"]))
        for row in rows
    ]


def predict(model: kinds.Finished, images: Sequence[str]) -> Iterator[dict]:
    """Yields a dict of `image`, `class` and `probabilities` by class name each."""
    evaluator = model.evaluator
    frozen, apply = model.frozen(evaluator), jax.jit(evaluator.predict)
    for batch, chosen in model.batches(images):
        logits = jax.device_get(apply(model.variables, frozen, batch))["logits"]
        probabilities = special.softmax(logits.astype(np.float64), axis=-1)  # [B, C]
        names = model.describe.get("class_names") or range(probabilities.shape[-1])
        names = [str(name) for name in names]
        for image, row in zip(chosen, probabilities, strict=False):
            yield {
                "image": image,
                "class": names[int(row.argmax())],
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
            }


KIND = kinds.Kind(
    recognises=lambda arrays: not architecture.missing(arrays),
    holds=encoders.holds,
    serves=encoders.serves,
    module=module,
    answers=answers,
    prepare=encoders.prepare,
    formats=encoders.FORMATS,
    recipe="finetune",
    settings=encoders.settings,
)
