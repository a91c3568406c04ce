# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A finished segmentor as other tools load it.

The network of one window is exported; the caller cuts a picture into windows and merges
their logits, with numbers that travel along.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import label_values, palette
from g2sd_jax.exports import programs, weight_files
from g2sd_jax.models import upernet
from g2sd_jax.ops import label_maps, relative
from g2sd_jax.weights import graft, loading, reading

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"


class Segmentor(NamedTuple):
    """The `weight_files.Model` of a segmentor."""

    source: str
    arrays: Mapping[str, np.ndarray]  # by PyTorch name
    describe: Mapping  # of the checkpoint, with `inference`
    preprocessing: Mapping
    readout: str = "decode_head"  # not the auxiliary head


def preprocessing(describe: Mapping) -> dict:
    """The steps from a picture to windows, and from logits to classes, in numbers."""
    model, inference = describe["model"], describe["inference"]
    count, classes = model["channels"], describe["classes"]
    each = lambda values: [float(value) for value in np.broadcast_to(values, count)]
    return dict(
        channels=count,
        mean=each(describe["mean"]),
        std=each(describe["std"]),
        mean_and_std="of pixels in 0..1",
        classes=classes,
        class_names=list(describe.get("class_names") or ()),
        palette=palette.colours()[:classes].tolist(),
        ignored=label_values.IGNORED,
        mode=inference["mode"],
        fit=list(inference["fit"]),
        window=list(model["image_size"]),
        stride=list(inference["stride"]),
        # Older files have one look at a picture, and neither of these two keys.
        scales=list(inference.get("scales", (1.0,))),
        flip=inference.get("flip", False),
        judged_with=dict(describe.get("data") or {}),  # Keys of `config.data`.
        interpolation="as OpenCV: bilinear, half-pixel centres, no antialiasing",
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
    """Writes `model.pth`, {"state_dict", "meta"}, with the buffers of mmsegmentation.

    It loads strictly into the authors' modules, by mmcv's loader too.
    """
    torch = weight_files.pytorch()
    grid = tuple(model.describe["grid"])
    arrays = dict(model.arrays)
    for name in model.arrays:
        if name.endswith(TABLE):
            arrays[name.removesuffix(TABLE) + INDEX] = relative.index(grid)
        if name.endswith("running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            arrays[counter] = np.array(0, np.int64)
    copied = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
    content = {
        "meta": {
            "CLASSES": model.preprocessing["class_names"],
            "PALETTE": model.preprocessing["palette"],
        },
        "state_dict": copied,
        reading.OURS: json.dumps(dict(model.describe)),
    }
    path = os.path.join(folder, "model.pth")
    torch.save(content, path)
    format_name = "PyTorch state dict under 'state_dict'"
    program = dict(format=format_name, readout=model.readout)
    return [path, weight_files.write_preprocessing(model, folder, program)]


def stablehlo(model: Segmentor, folder: str) -> list[str]:
    """Writes `model.stablehlo`, for any number of windows on CPU, TPU and CUDA.

    `jax.export.deserialize(bytes).call(image, size)` runs it.
    """
    return programs.write_stablehlo(model, folder, network(model), _signature(model))


def network(model: Segmentor) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The `models.upernet.Segmentor` applied to its weights.

    Pixels outside of a window's size are 0 after normalisation, as in training.

    Returns:
        (image [B, h, w, C] uint8, size [B, 2] int32) -> logits [B, h/4, w/4, classes].
    """
    describe = model.describe
    config = ConfigDict(describe["model"])
    module = upernet.segmentor(config, describe["classes"], aux=False)
    variables = graft.onto(
        jax.eval_shape(lambda key: upernet.init(module, key), jax.random.key(0)),
        loading.Weights(model.source, model.arrays, describe),
        grid=tuple(describe["grid"]),
        dropped=(r"auxiliary_head\..*",),  # Only training reads it.
    )
    spec = label_maps.Spec(tuple(describe["mean"]), tuple(describe["std"]))

    def run(image: jax.Array, size: jax.Array) -> jax.Array:
        batch = dict(image=image, image_size=size)
        image = label_maps.prepare(batch, {}, spec)["image"]
        return module.apply(variables, image, False).logits

    return run


def _signature(model: Segmentor) -> dict:
    """Inputs and output, as a caller in another language wants to know them."""
    channels, classes = (model.preprocessing[key] for key in ("channels", "classes"))
    height, width = model.preprocessing["window"]
    pixels = ["batch", height, width, channels]
    logits = ["batch", height // 4, width // 4, classes]
    return dict(
        input=dict(name="image", shape=pixels, dtype="uint8", layout="NHWC"),
        size=dict(name="size", shape=["batch", 2], dtype="int32", of="height, width"),
        output=dict(name="logits", shape=logits, dtype="float32", layout="NHWC"),
        normalisation="inside the program: give it the pixels, and how many are real",
    )
