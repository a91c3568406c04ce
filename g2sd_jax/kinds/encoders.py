# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Classifiers and masked autoencoders as weights: their description and their export.

A file may hold both, an encoder with a decoder and a head, so both kinds share this.
"""

from g2sd_jax import errors, kinds
from g2sd_jax.exports import programs, weight_files
from g2sd_jax.models import layers, variants, vit
from g2sd_jax.weights import architecture, description, loading, parts

READOUTS = ("cls", "dist", "mean")
FORMATS = {
    "safetensors": weight_files.safetensors_file,
    "torch": weight_files.torch_file,
    "timm": weight_files.timm,
    "transformers": weight_files.transformers,
    "stablehlo": programs.stablehlo,
    "onnx": programs.onnx,
}
DECODER_FEATURES = parts.FEATURE_HEADS[1]


def holds(weights: loading.Weights) -> list[str]:
    """Lines on encoder, decoder, heads, and the pictures they were trained on."""
    describe = weights.describe
    shape = architecture.infer(weights.arrays, describe, weights.source)
    lines = [_encoder_line(shape), *_decoder_lines(shape), _head_line(shape)]
    if shape.extra:
        lines.append(f"heads of a distillation: {', '.join(shape.extra)}")
    if shape.decoder:
        target = describe.get("target", "not told")
        lines.append(f"pixels it was trained on: {target}")
    lines += description.pictures(describe, with_classes=shape.classes > 0)
    if shape.unknown:
        some = ", ".join(shape.unknown[:4])
        lines.append(f"unknown here: {some} ({len(shape.unknown)} in all)")
    return lines


def _heads(count: int | None) -> str:
    return f"{count} heads" if count else "heads not told by shapes"


def _encoder_line(shape: architecture.Architecture) -> str:
    line = (
        f"encoder: {shape.size}: {shape.depth} blocks, {shape.width} wide, "
        f"{_heads(shape.heads)}, patches of {shape.patch}x{shape.patch}x"
        f"{shape.channels}"
    )
    if shape.norm_eps != layers.LN_EPS:
        line += f", LayerNorms that add {shape.norm_eps:g}"
    options = variants.differences(shape.variant)
    if options:
        line += f"; {', '.join(f'{key}={value}' for key, value in options.items())}"
    if not shape.grid:
        return line
    rows, columns = shape.grid
    height, width = shape.image_size
    return f"{line}, a {rows}x{columns} grid of them ({height}x{width} pixels)"


def _decoder_lines(shape: architecture.Architecture) -> list[str]:
    if not shape.decoder:
        return ["decoder: none"]
    width, depth, heads = shape.decoder
    pixels = "predicts pixels" if shape.pixel_head else "no pixel head"
    lines = [f"decoder: {depth} blocks, {width} wide, {_heads(heads)}, {pixels}"]
    if shape.pixel_head and DECODER_FEATURES in shape.extra:
        lines.append("its pixel head was never trained, as in G2SD's first stage")
    return lines


def _head_line(shape: architecture.Architecture) -> str:
    if not shape.classes:
        return "head: none"
    pool = vit.POOLS[shape.pool]
    second = ", and a distillation token with its own" if shape.dist_token else ""
    return f"head: {shape.classes} classes, on {pool}{second}"


def serves(weights: loading.Weights) -> list[str]:
    """Lines on the keys of recipes that take them, and the flags that fit a recipe."""
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    if shape.unknown:
        return ["serves: nothing here, while it holds what is unknown"]
    teaches, uses = ["dmae_distill"], ["config.init_from of finetune and specific_cls"]
    if shape.classes:
        teaches = ["specific_cls"]
        uses.append("g2sd export")
    elif shape.pixel_head and DECODER_FEATURES not in shape.extra:
        teaches.insert(0, "generic_distill")
    else:
        teaches.insert(0, "generic_distill:target=encoder")
    if shape.pool != "avg":  # A mean of patches comes without the encoder's last norm.
        uses.append("config.encoder.checkpoint of linprobe")
    uses.insert(0, f"config.teacher.checkpoint of {' and '.join(teaches)}")
    encoder = shape._replace(decoder=None, classes=0, dist_token=False)
    return [
        f"serves: {'; '.join(uses)}",
        f"as teacher: {architecture.flags(shape, 'config.teacher.model')}",
        f"as encoder: {architecture.flags(encoder)}",
    ]


def settings(weights: loading.Weights) -> dict:
    """The model's keys, as names and shapes tell them; a description goes before."""
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    model = dict(
        size="custom",
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        patch=shape.patch,
        image_size=shape.image_size,
        channels=shape.channels,
        mlp_ratio=float(shape.mlp_ratio),
        norm_eps=shape.norm_eps,
        pool=shape.pool,
        dist_token=shape.dist_token,
        readout="mean" if shape.dist_token else "cls",
    )
    if shape.decoder:
        names = ("dec_width", "dec_depth", "dec_heads")
        model |= dict(zip(names, shape.decoder, strict=True), decoder="custom")
    # What is not told, the description may know; else the recipe asks for it.
    return dict(model={key: v for key, v in model.items() if v is not None})


def prepare(
    weights: loading.Weights, options: kinds.ExportOptions
) -> weight_files.Encoder:
    """Completes the weights of a classifier or autoencoder by what writers need."""
    source, describe = weights.source, dict(weights.describe)
    shape = architecture.infer(weights.arrays, describe, source)
    if shape.unknown:
        raise ValueError(
            f"--workdir={source!r} has parts that no exported model computes: "
            f"{', '.join(shape.unknown[:4])} ({len(shape.unknown)} in all)."
        )
    if shape.heads is None or shape.grid is None:
        raise ValueError(
            f"--workdir={source!r} does not say its number of heads, or its "
            "pictures' aspect, and no known size has its shape; export the workdir of "
            "a run that started from it."
        )
    for name in ("mean", "std"):
        text = getattr(options, name)
        if text:
            describe[name] = _numbers(name, text, shape.channels)
        elif name not in describe:
            raise ValueError(
                f"--workdir={source!r} does not say which {name} its pictures "
                f"were normalised with; give --{name}=0.5,0.5,0.5 or whatever it was."
            )
    return weight_files.Encoder(
        source=source,
        arrays=weights.arrays,
        describe=describe,
        preprocessing=weight_files.preprocessing(describe, shape),
        readout=_readout(weights, options.readout, shape),
        shape=shape,
    )


def _readout(
    weights: loading.Weights, readout: str, shape: architecture.Architecture
) -> str:
    default = "mean" if shape.dist_token else "cls"
    readout = readout or weights.describe.get("model", {}).get("readout", default)
    errors.one_of("--readout", readout, READOUTS)
    if readout != "cls" and not shape.dist_token:
        raise ValueError(
            f"--readout={readout} needs a distillation head, which "
            f"{weights.source!r} does not have; leave it out."
        )
    return readout


def _numbers(name: str, text: str, channels: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--{name}={text!r} is not a list of numbers") from None
    if len(values) not in (1, channels):
        raise ValueError(f"--{name}={text!r} has to be 1 or {channels} numbers")
    return values
