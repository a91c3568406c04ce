# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A network as a program that runs without this package: StableHLO and ONNX."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from importlib import metadata

import jax
from jax import export

from g2sd_jax.exports import plain, weight_files
from g2sd_jax.models import vit
from g2sd_jax.ops import augment
from g2sd_jax.weights import architecture, graft, loading, parts

PLATFORMS = ("cpu", "tpu", "cuda")
LARGEST = 2**31 - 2**20  # Of a protocol buffer, with room for the program.
OPSET = 18  # LayerNorm's square root and GELU's erf need no newer one.


def stablehlo(model: weight_files.Encoder, folder: str) -> list[str]:
    """Writes `model.stablehlo`: `jax.export.deserialize(bytes).call(image)` runs it.

    For any batch size on CPU, TPU and CUDA, each with the attention that was measured
    to be fastest there.
    """
    return write_stablehlo(model, folder, network(model), _signature(model))


def network(model: weight_files.Encoder) -> Callable[[jax.Array], jax.Array]:
    """The `models.vit.Vit` of a classifier or encoder, applied to its weights.

    An autoencoder without its decoder is such a network: it stores its sin-cos table.

    Returns:
        image [B, H, W, C] uint8 -> logits [B, classes], or of an encoder its normed
        tokens [B, T, D].
    """
    shape, preprocessing = model.shape, model.preprocessing
    module = architecture.encoder(
        shape,
        shape.image_size,
        classes=shape.classes,
        pool=shape.pool if shape.classes else _encoder_pool(shape),
        scan=False,  # ViT-S, one picture, one busy core: 181 instead of 210 ms.
    )
    variables = graft.onto(
        jax.eval_shape(lambda key: vit.init(module, key), jax.random.key(0)),
        loading.Weights(model.source, model.arrays, model.describe),
        grid=shape.grid,
        dropped=(*parts.PRETRAINING_NAMES, *parts.unread(module.pool)),
    )
    mean, std = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
    spec = augment.Spec(shape.image_size, mean, std)

    def run(image: jax.Array) -> jax.Array:
        image = augment.prepare({"image": image}, {}, spec)["image"]
        outputs = module.apply(variables, image)
        if shape.classes:
            return vit.read_logits(outputs, model.readout)
        return outputs.normed

    return run


def _encoder_pool(shape: architecture.Architecture) -> str:
    """A pool whose module has the last norm of all tokens, and no part to drop."""
    return "cls" if shape.variant.class_token else "norm_avg"


def write_stablehlo(
    model: weight_files.Model,
    folder: str,
    run: Callable[..., jax.Array],
    signature: Mapping,
) -> list[str]:
    """Writes any function as `model.stablehlo`, for any batch size on all `PLATFORMS`.

    Args:
        model: whose preprocessing is written beside the program.
        folder: that exists.
        run: of arrays shaped as `signature` says.
        signature: `input`, perhaps `size`, each with `shape` ("batch" first) and
            `dtype`; all of it goes into preprocessing.json.
    """
    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(run), platforms=PLATFORMS)(
        *_input_shapes(signature, batch)
    )
    path = os.path.join(folder, "model.stablehlo")
    with open(path, "wb") as file:
        file.write(exported.serialize())
    program = dict(
        format="StableHLO, serialised by jax.export",
        platforms=PLATFORMS,
        calling_convention=exported.calling_convention_version,
        made_with=f"jax {jax.__version__}",
        **signature,
    )
    return [path, weight_files.write_preprocessing(model, folder, program)]


def onnx(model: weight_files.Encoder, folder: str) -> list[str]:
    """Writes `model.onnx` by jax2onnx, with the preprocessing in its metadata."""
    try:
        jax2onnx = importlib.import_module("jax2onnx")
    except ImportError:
        raise ValueError(
            "--format=onnx takes jax2onnx, which pins an old Orbax and so lives in an "
            "environment of its own. In a checkout of g2sd_jax: python -m venv onnx && "
            "onnx/bin/pip install '.[onnx]'; then onnx/bin/g2sd export … reads the "
            "same workdir."
        ) from None
    weight_files.check_plain(model, "onnx")
    size = sum(array.nbytes for array in model.arrays.values())
    if size > LARGEST:
        raise ValueError(
            f"{model.source} holds {size / 2**30:.1f} GB of weights, and an ONNX file "
            "at most 2; use --format=stablehlo."
        )
    signature = _signature(model)
    run = plain.program(
        model.arrays,
        model.shape,
        readout=model.readout,
        mean=model.preprocessing["mean"],
        std=model.preprocessing["std"],
    )
    exported = jax2onnx.to_onnx(
        run,
        _input_shapes(signature, "B"),
        model_name="g2sd_jax",
        opset=OPSET,
        input_names=[signature["input"]["name"]],
        output_names=[signature["output"]["name"]],
    )
    _replace_einsums(exported.graph)
    program = dict(format="ONNX", opset=OPSET, made_with=_versions(), **signature)
    text = json.dumps({**model.preprocessing, "program": program})
    exported.metadata_props.add(key="preprocessing", value=text)
    path = os.path.join(folder, "model.onnx")
    with open(path, "wb") as file:
        file.write(exported.SerializeToString())
    return [path, weight_files.write_preprocessing(model, folder, program)]


def _input_shapes(signature: Mapping, batch) -> list[jax.ShapeDtypeStruct]:
    """The inputs of a signature; `batch` is a symbolic dimension, or its name."""
    inputs = [signature[key] for key in ("input", "size") if key in signature]
    return [
        jax.ShapeDtypeStruct((batch, *array["shape"][1:]), array["dtype"])
        for array in inputs
    ]


def _replace_einsums(graph) -> None:
    """Turns x [B, T, D] times a matrix [D, E] into MatMul, which means the same.

    jax2onnx 0.17 writes Einsum: 181 instead of 154 ms for one picture through ViT-S on
    one core, with onnxruntime 1.31.
    """
    for node in graph.node:
        equation = [attribute.s for attribute in node.attribute]
        if node.op_type == "Einsum" and equation == [b"abc,cd->abd"]:
            node.op_type = "MatMul"
            del node.attribute[:]


def _versions() -> str:
    names = ("jax", "jax2onnx", "onnx")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _signature(model: weight_files.Encoder) -> dict:
    """Input and output, as a caller in another language wants to know them."""
    shape = model.shape
    output = dict(name="logits", shape=["batch", shape.classes], dtype="float32")
    if not shape.classes:
        count = shape.grid[0] * shape.grid[1] + shape.variant.prefix + shape.dist_token
        tokens = ["batch", count, shape.width]
        output = dict(name="tokens", shape=tokens, dtype="float32")
    pixels = ["batch", *shape.image_size, shape.channels]
    return dict(
        input=dict(name="image", shape=pixels, dtype="uint8", layout="NHWC"),
        output=output,
        normalisation="inside the program: give it the pixels",
        readout=model.readout,
    )
