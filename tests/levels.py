# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A task that the package does not know: how bright a picture is, as a number."""

import numpy as np

from g2sd_jax import core
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import augment

NEEDS = ("init_from",)
RECIPE = "finetune"
BECAUSE = "the levels of the whole batch divide the loss"


def build(config) -> core.Task:
    """Regression of `level`, divided by the sum of the batch's levels."""
    model = vit.classifier(config.model, 1, **layers.compute_options(config))
    spec = augment.spec(config, train=False)

    def terms(outputs, batch):
        error = outputs.logits[:, 0] - batch["level"]
        return {"level": (error**2).sum() / batch["level"].sum()}

    def picture(example, classes):
        image, level = example["image"], float(example["level"])
        legend = [(int(10 * level), "bright" if level > 0.5 else "dark")]
        return core.Picture(image, 255 - image, f"level {level:.1f}", legend)

    return core.Task(
        init=lambda key: vit.init(model, key),
        draw=lambda key, batch: {},
        forward=lambda variables, batch, draws: (
            model.apply(variables, batch["image"]),
            {},
        ),
        terms=terms,
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        evaluators={},
        reads=("level",),
        picture=picture,
        summarise=lambda dataset, batch: [f"levels of {dataset.count} pictures"],
        indivisible=BECAUSE,
        describe=vit.describe(config),
    )


def make(rng, size, channels, classes):
    """A fake example: a picture of one brightness, and that in 0.1..1."""
    level = np.float32(rng.integers(1, 11) / 10)
    example = {
        "image": np.full((*size, channels), 255 * level, np.uint8),
        "level": level,
    }
    return example, example
