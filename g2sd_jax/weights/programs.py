# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A network as a program that runs without this package: StableHLO and ONNX."""

import importlib
import json
import os
from collections.abc import Callable
from importlib import metadata

import jax
from jax import export

from g2sd_jax.ops import attention
from g2sd_jax.weights import exporters, plain

PLATFORMS = ("cpu", "tpu", "cuda")
LARGEST = 2**31 - 2**20  # Of a protocol buffer, with room for the program.
OPSET = 18  # LayerNorm's square root and GELU's erf need no newer one.


def stablehlo(model: exporters.Model, folder: str) -> list[str]:
    """`model.stablehlo`: `jax.export.deserialize(bytes).call(image)` runs it.

    For any batch size on CPU, TPU and CUDA, each with the attention that was measured
    to be fastest there.
    """
    run = _program(model, attention=attention.attention)
    return write_stablehlo(model, folder, run, _signature(model))


def write_stablehlo(model, folder: str, run: Callable, signature: dict) -> list[str]:
    """The same of any function of what `signature` calls `input` and `size`."""
    (batch,) = export.symbolic_shape("batch")
    done = export.export(jax.jit(run), platforms=PLATFORMS)(*_shaped(signature, batch))
    path = os.path.join(folder, "model.stablehlo")
    with open(path, "wb") as file:
        file.write(done.serialize())
    told = dict(
        format="StableHLO, serialised by jax.export",
        platforms=PLATFORMS,
        calling_convention=done.calling_convention_version,
        made_with=f"jax {jax.__version__}",
        **signature,
    )
    return [path, exporters.write_preprocessing(model, folder, told)]


def onnx(model: exporters.Model, folder: str) -> list[str]:
    """`model.onnx`, with the preprocessing in its metadata; made by jax2onnx."""
    try:
        jax2onnx = importlib.import_module("jax2onnx")
    except ImportError:
        raise ValueError(
            "--format=onnx takes jax2onnx, which pins an old Orbax and so lives in an "
            "environment of its own: python -m venv onnx && onnx/bin/pip install "
            "'g2sd_jax[onnx]', then onnx/bin/g2sd export … reads the same workdir."
        ) from None
    size = sum(array.nbytes for array in model.arrays.values())
    if size > LARGEST:
        raise ValueError(
            f"{model.source} holds {size / 2**30:.1f} GB of weights, and an ONNX file "
            "at most 2; use --format=stablehlo."
        )
    signature = _signature(model)
    made = jax2onnx.to_onnx(
        _program(model),
        _shaped(signature, "B"),
        model_name="g2sd_jax",
        opset=OPSET,
        input_names=[signature["input"]["name"]],
        output_names=[signature["output"]["name"]],
    )
    _plain_products(made.graph)
    told = dict(format="ONNX", opset=OPSET, made_with=_versions(), **signature)
    text = json.dumps({**model.preprocessing, "program": told})
    made.metadata_props.add(key="preprocessing", value=text)
    path = os.path.join(folder, "model.onnx")
    with open(path, "wb") as file:
        file.write(made.SerializeToString())
    return [path, exporters.write_preprocessing(model, folder, told)]


def _shaped(signature, batch):
    inputs = [signature[key] for key in ("input", "size") if key in signature]
    return [
        jax.ShapeDtypeStruct((batch, *each["shape"][1:]), each["dtype"])
        for each in inputs
    ]


def _plain_products(graph):
    """Turns x [B, T, D] times a matrix [D, E] into MatMul, which means the same.

    jax2onnx 0.17 writes Einsum: 181 instead of 154 ms for one picture through ViT-S on
    one core, with onnxruntime 1.31.
    """
    for node in graph.node:
        equation = [attribute.s for attribute in node.attribute]
        if node.op_type == "Einsum" and equation == [b"abc,cd->abd"]:
            node.op_type = "MatMul"
            del node.attribute[:]


def _program(model, **chosen):
    told = model.preprocessing
    return plain.program(
        model.arrays,
        model.shape,
        readout=model.readout,
        mean=told["mean"],
        std=told["std"],
        **chosen,
    )


def _pixels(model):
    return (*model.shape.image_size, model.shape.channels)


def _versions():
    names = ("jax", "jax2onnx", "onnx")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _signature(model):
    """Input and output, as a caller in another language wants to know them."""
    shape = model.shape
    prefix = 1 + shape.dist_token
    count = shape.grid[0] * shape.grid[1] + prefix
    output = dict(name="logits", shape=["batch", shape.classes], dtype="float32")
    if not shape.classes:
        tokens = ["batch", count, shape.width]
        output = dict(name="tokens", shape=tokens, dtype="float32")
    pixels = ["batch", *_pixels(model)]
    return dict(
        input=dict(name="image", shape=pixels, dtype="uint8", layout="NHWC"),
        output=output,
        normalisation="inside the program: give it the pixels",
        readout=model.readout,
    )
