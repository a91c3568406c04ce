# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A finished detector as other tools load it: detectron2's names, or a program.

The program goes from canvases of one size to detections on them; the caller scales a
picture to fit the canvas, and its boxes and masks back.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax.exports import programs
from g2sd_jax.models import detector, detector_inference
from g2sd_jax.ops import canvases
from g2sd_jax.weights import graft, loading


class Detector(NamedTuple):
    """The `weight_files.Model` of a detector."""

    source: str
    arrays: Mapping[str, np.ndarray]  # by PyTorch name
    describe: Mapping  # of the checkpoint, with `inference`
    preprocessing: Mapping
    readout: str = "roi_heads"


def preprocessing(describe: Mapping) -> dict:
    """The steps from a picture to a canvas, and from detections to objects."""
    model, count = describe["model"], describe["model"]["channels"]
    each = lambda values: [float(value) for value in np.broadcast_to(values, count)]
    return dict(
        channels=count,
        canvas=list(model["image_size"]),
        mean=each(describe["mean"]),
        std=each(describe["std"]),
        mean_and_std="of pixels in 0..1",
        classes=describe["classes"],
        class_names=list(describe.get("class_names") or ()),
        category_ids=list(describe.get("category_ids") or ()),
        inference=dict(describe["inference"]),
        interpolation="bilinear, with antialiasing (Pillow)",
        steps=[
            "scale the picture by the largest factor with which it fits the canvas, "
            "its sides int(side * factor + 0.5); put it at the top left; say its size",
            "boxes are x1 y1 x2 y2 in pixels of the canvas: divide by that factor, "
            "clip to the picture, leave out those without area or not valid",
            "masks are probabilities in a square that fills its box: stretch them "
            "bilinearly over it, and take a pixel from 0.5",
        ],
    )


def stablehlo(model: Detector, folder: str) -> list[str]:
    """Writes `model.stablehlo`, for any number of canvases on CPU, TPU and CUDA."""
    return programs.write_stablehlo(model, folder, network(model), _signature(model))


def network(model: Detector) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    """The detector applied to its weights.

    Returns:
        (image [B, H, W, C] uint8, size [B, 2] int32) -> what
        `detector_inference.predictor` returns.
    """
    describe = model.describe
    module = detector.detector(ConfigDict(describe["model"]), describe["classes"])
    variables = graft.onto(
        jax.eval_shape(lambda key: detector.init(module, key), jax.random.key(0)),
        loading.Weights(model.source, model.arrays, describe),
        grid=tuple(describe["grid"]),
        dropped=(r"stu_adapter\..*",),  # Only distillation reads it.
    )
    settings = detector_inference.Settings(**describe["inference"])
    predict = detector_inference.predictor(module, settings)
    mean, std = tuple(describe["mean"]), tuple(describe["std"])

    def run(image: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
        return predict(variables, canvases.normalise(image, size, mean, std), size)

    return run


def _signature(model: Detector) -> dict:
    """Inputs and outputs, as a caller in another language wants to know them."""
    channels, (height, width) = (model.preprocessing[k] for k in ("channels", "canvas"))
    count = model.describe["inference"]["count"]
    side = 2 * model.describe["model"]["mask_bins"]
    out = lambda dtype, *shape: dict(shape=["batch", count, *shape], dtype=dtype)
    return dict(
        input=dict(
            name="image",
            shape=["batch", height, width, channels],
            dtype="uint8",
            layout="NHWC",
        ),
        size=dict(name="size", shape=["batch", 2], dtype="int32", of="height, width"),
        output=dict(
            boxes=out("float32", 4),
            scores=out("float32"),
            labels=out("int32"),
            valid=out("bool"),
            masks=out("float32", side, side),
        ),
        normalisation="inside the program: give it the pixels, and how many are real",
    )
