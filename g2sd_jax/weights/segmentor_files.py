# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A finished segmentor as other tools load it.

What sees one window is exported; cutting a picture into windows and merging their
logits is left to the caller, whose every number travels along.
"""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import palette
from g2sd_jax.models import upernet
from g2sd_jax.ops import label_maps, relative
from g2sd_jax.weights import exporters, graft, importers, loading, programs

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
WHY_NOT = {
    "timm": "timm has no segmentors; use torch, whose names are those of the authors' "
    "code and of mmsegmentation, or stablehlo",
    "transformers": "its nearest model, BeitForSemanticSegmentation, has no bias of "
    "keys and no sliding windows, and is not written here; use torch, whose names are "
    "those of the authors' code and of mmsegmentation, or stablehlo",
    "onnx": "its converter, jax2onnx, does not take the loop over the blocks for any "
    "number of windows; use stablehlo",
}


class Segmentor(NamedTuple):
    """What is exported."""

    source: str
    arrays: Mapping[str, np.ndarray]  # by PyTorch name
    told: Mapping  # the checkpoint's description, with `inference`
    preprocessing: Mapping
    readout: str = "decode_head"  # of two heads the one that answers


def preprocessing(told: Mapping) -> dict:
    """What becomes of a picture before the network and after it, in numbers."""
    model, said = told["model"], told["inference"]
    count, classes = model["channels"], told["classes"]
    each = lambda values: [float(value) for value in np.broadcast_to(values, count)]
    return dict(
        channels=count,
        mean=each(told["mean"]),
        std=each(told["std"]),
        mean_and_std="of pixels in 0..1",
        classes=classes,
        class_names=list(told.get("class_names") or ()),
        palette=palette.colours()[:classes].tolist(),
        ignored=palette.IGNORED,
        mode=said["mode"],
        fit=list(said["fit"]),
        window=list(model["image_size"]),
        stride=list(said["stride"]),
        # A file from before a picture could be looked at more than once tells neither.
        scales=list(said.get("scales", (1.0,))),
        flip=said.get("flip", False),
        interpolation="bilinear, half-pixel centres, no antialiasing",
        steps=[
            "look at the picture once for each of scales and, if flip, once more "
            "mirrored left to right, after it is scaled; for each look:",
            "slide: the sides of fit become int(side * scale); scale the picture by "
            "min(min(fit)/min(size), max(fit)/max(size)), its sides int(side * factor "
            "+ 0.5); whole: by the largest factor with which it fits the window",
            "cut windows, each side from min(i * stride + window, side) - window, at "
            "least 0, for i = 0 .. max(side - window + stride - 1, 0) // stride",
            "pad what is smaller at the bottom and right, and say its size",
            "enlarge the logits to the window, cut off the padding, add them up, "
            "divide by how many windows cover each pixel",
            "resize to the picture's own size; of a mirrored look, mirror it back",
            "of one look take the largest; of several, that of the sum of their "
            "probabilities (softmax)",
        ],
    )


def torch_file(model: Segmentor, folder: str) -> list[str]:
    """`model.pth`, {"state_dict", "meta"}, with the buffers the authors' modules have.

    So it loads strictly there, by mmcv's loader too.
    """
    torch = exporters.pytorch()
    grid = tuple(model.told["grid"])
    arrays = dict(model.arrays)
    for name in model.arrays:
        if name.endswith(TABLE):
            arrays[name.removesuffix(TABLE) + INDEX] = relative.index(grid)
        if name.endswith("running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            arrays[counter] = np.array(0, np.int64)
    copied = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
    told = model.preprocessing
    meta = {"CLASSES": told["class_names"], "PALETTE": told["palette"]}
    whole = {"meta": meta, "state_dict": copied}
    path = os.path.join(folder, "model.pth")
    torch.save({**whole, importers.OURS: json.dumps(dict(model.told))}, path)
    told = dict(format="PyTorch state dict under 'state_dict'", readout=model.readout)
    return [path, exporters.write_preprocessing(model, folder, told)]


def stablehlo(model: Segmentor, folder: str) -> list[str]:
    """`model.stablehlo`: `jax.export.deserialize(bytes).call(image, size)` runs it.

    For any number of windows at once, on CPU, TPU and CUDA.
    """
    return programs.write_stablehlo(model, folder, _program(model), _signature(model))


def _program(model):
    """(image [B, h, w, C] uint8, size [B, 2] int32) -> logits [B, h/4, w/4, classes].

    What lies outside of a window's size is 0 after it is normalised, as in training.
    """
    told = model.told
    network = upernet.segmentor(ConfigDict(told["model"]), told["classes"], aux=False)
    shapes = jax.eval_shape(lambda key: upernet.init(network, key), jax.random.key(0))
    weights = loading.Weights(model.source, model.arrays, told)
    heads = (r"auxiliary_head\..*",)  # Only training reads them.
    grid = tuple(told["grid"])
    variables = graft.onto(shapes, weights, grid=grid, dropped=heads)
    spec = label_maps.Spec(tuple(told["mean"]), tuple(told["std"]))

    def run(image, size):
        batch = dict(image=image, image_size=size)
        ready = label_maps.prepare(batch, {}, spec)["image"]
        return network.apply(variables, ready, False).logits

    return run


def _signature(model):
    """Inputs and output, as a caller in another language wants to know them."""
    told = model.preprocessing
    height, width = told["window"]
    pixels = ["batch", height, width, told["channels"]]
    logits = ["batch", height // 4, width // 4, told["classes"]]
    return dict(
        input=dict(name="image", shape=pixels, dtype="uint8", layout="NHWC"),
        size=dict(name="size", shape=["batch", 2], dtype="int32", of="height, width"),
        output=dict(name="logits", shape=logits, dtype="float32", layout="NHWC"),
        normalisation="inside the program: give it the pixels, and how many are real",
    )


FORMATS = {
    "safetensors": exporters.safetensors_file,
    "torch": torch_file,
    "stablehlo": stablehlo,
}
