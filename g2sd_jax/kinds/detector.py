# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The detector: finds objects, their classes, boxes and masks."""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from g2sd_jax import kinds
from g2sd_jax.exports import detector, weight_files
from g2sd_jax.kinds import detections
from g2sd_jax.weights import description, loading, parts

REFUSALS = {
    "timm": "timm has no detectors; use torch, whose names are those of detectron2, "
    "or stablehlo",
    "transformers": "its VitDetBackbone has no heads; use torch, whose names are those "
    "of detectron2, or stablehlo",
    "onnx": "its converter, jax2onnx, does not take the loops over blocks and regions; "
    "use stablehlo",
}


def recognises(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict has the last layer of a mask head."""
    return f"{parts.MASK_HEAD}.weight" in arrays


def holds(weights: loading.Weights) -> list[str]:
    """A line on the network, and on the pictures it was trained on."""
    lines = [f"detector: {weights.summary()}"]
    return lines + description.pictures(weights.describe, with_classes=True)


def serves(weights: loading.Weights) -> list[str]:
    """A line on the keys of recipes that take it."""
    return [
        "serves: config.init_from of finetune:task=detection and specific_det; "
        "config.teacher.checkpoint of specific_det"
    ]


def module(model: kinds.Finished) -> NoReturn:
    """Refuses: no verb compares or embeds its encoder."""
    raise ValueError(
        f"{model.source} is a detector, whose encoder this verb can not see alone; "
        "g2sd evaluate judges it, or name the run its encoder comes from."
    )


def settings(weights: loading.Weights) -> dict:
    """How it chooses detections, where it says so."""
    if "inference" not in weights.describe:
        return {}
    numbers = weights.describe["inference"]
    both = lambda value: (value, value)
    return dict(
        proposals=dict(
            before=both(numbers["before"]),
            after=both(numbers["after"]),
            nms=numbers["nms"],
        ),
        inference=dict(
            least=numbers["least"],
            nms=numbers["class_nms"],
            detections=numbers["count"],
            candidates=numbers["candidates"],
        ),
    )


def prepare(
    weights: loading.Weights, options: kinds.ExportOptions
) -> detector.Detector:
    """Completes the weights of a detector by its preprocessing."""
    for name in ("readout", "mean", "std"):
        if getattr(options, name):
            raise ValueError(
                f"--{name}={getattr(options, name)} is not for a detector, which says "
                "itself how its pictures were normalised, and has one answer."
            )
    if "inference" not in weights.describe:
        raise ValueError(
            f"--workdir={weights.source!r} is a detector that does not say its canvas, "
            "nor how detections are chosen: start a run from it (config.init_from) and "
            "export that run's workdir."
        )
    return detector.Detector(
        source=weights.source,
        arrays=weights.arrays,
        describe=weights.describe,
        preprocessing=detector.preprocessing(weights.describe),
    )


KIND = kinds.Kind(
    recognises=recognises,
    holds=holds,
    serves=serves,
    module=module,
    answers=detections.answers,
    prepare=prepare,
    formats={
        "safetensors": weight_files.safetensors_file,
        "torch": weight_files.torch_file,
        "stablehlo": detector.stablehlo,
    },
    refusals=REFUSALS,
    recipe="finetune:task=detection",
    settings=settings,
    pictures=detections.PICTURES,
)
