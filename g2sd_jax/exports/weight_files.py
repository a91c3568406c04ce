# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finished weights as other tools load them, with the preprocessing they expect."""

import importlib
import json
import os
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import safetensors.numpy

from g2sd_jax import parallel
from g2sd_jax.models import layers, variants
from g2sd_jax.weights import architecture, parts, reading, transformers_names

TIMM = {  # Of a size: the entry of timm that is nearest; every number is stated anyway.
    "ti16": "vit_tiny_patch16_224",
    "s16": "vit_small_patch16_224",
    "l16": "vit_large_patch16_224",
    "h14": "vit_huge_patch14_224",
}


class Model(Protocol):
    """What every kind prepares for the writers of files."""

    source: str  # the workdir or file of the weights
    arrays: Mapping[str, np.ndarray]  # by PyTorch name
    describe: Mapping  # of the checkpoint
    preprocessing: Mapping  # what to do to a picture, in numbers
    readout: str  # the head, or heads, whose logits count


class Encoder(NamedTuple):
    """The `Model` of a classifier or autoencoder."""

    source: str
    arrays: Mapping[str, np.ndarray]
    describe: Mapping
    preprocessing: Mapping
    readout: str  # cls, dist, mean
    shape: architecture.Architecture  # with heads and grid


Writer = Callable[[Model, str], list[str]]  # (model, folder) -> paths of its files


def preprocessing(describe: Mapping, shape: architecture.Architecture) -> dict:
    """The steps from a picture to the network's input, and the names of classes."""
    count = shape.channels
    each = lambda values: [float(value) for value in np.broadcast_to(values, count)]
    return dict(
        image_size=list(shape.image_size),
        channels=count,
        crop="resize to cover image_size / crop_share, then cut image_size centred",
        crop_share=describe.get("eval_crop", 1.0),
        interpolation="bicubic, with antialiasing",
        mean=each(describe["mean"]),
        std=each(describe["std"]),
        mean_and_std="of pixels in 0..1",
        classes=shape.classes,
        class_names=list(describe.get("class_names") or ()),
        judged_with=dict(describe.get("data") or {}),  # Keys of `config.data`.
    )


def write_preprocessing(model: Model, folder: str, program: Mapping) -> str:
    """Writes `preprocessing.json`, for formats that have no place for it."""
    path = os.path.join(folder, "preprocessing.json")
    return _write_json(path, {**model.preprocessing, "program": dict(program)})


def safetensors_file(model: Model, folder: str) -> list[str]:
    """Writes `model.safetensors` by PyTorch name, with the description inside."""
    path = os.path.join(folder, "model.safetensors")
    metadata = {reading.OURS: json.dumps(dict(model.describe))}
    _save(path, model.arrays, metadata)
    program = dict(format="safetensors, PyTorch names", readout=model.readout)
    return [path, write_preprocessing(model, folder, program)]


def torch_file(model: Model, folder: str) -> list[str]:
    """Writes `model.pth`, {"model": state dict}, as the authors' scripts do."""
    torch = pytorch()
    path = os.path.join(folder, "model.pth")
    copied = {n: torch.from_numpy(np.array(a)) for n, a in model.arrays.items()}
    torch.save({"model": copied, reading.OURS: json.dumps(dict(model.describe))}, path)
    program = dict(format="PyTorch state dict under 'model'", readout=model.readout)
    return [path, write_preprocessing(model, folder, program)]


def pytorch() -> types.ModuleType:
    """Imports torch, which only this format needs."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            "--format=torch takes PyTorch to write: pip install 'g2sd_jax[torch]', or "
            "--format=safetensors, which PyTorch reads as well."
        ) from None


def timm(model: Encoder, folder: str) -> list[str]:
    """Writes a directory for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    A masked autoencoder is written without its decoder, which timm does not have.
    """
    shape = model.shape
    check_plain(model, "timm")
    _check_two_heads(model, "timm")
    if shape.norm_eps != layers.LN_EPS:
        raise ValueError(
            f"{model.source}: its LayerNorms add {shape.norm_eps:g} to the variance; "
            f"timm's config.json can not say so, and {layers.LN_EPS:g} would be added. "
            "Use --format=transformers, stablehlo, onnx, safetensors or torch."
        )
    arrays = parts.without(model.arrays, parts.PRETRAINING_NAMES)
    entry = TIMM.get(shape.size, "vit_base_patch16_224")
    args = dict(
        img_size=list(shape.image_size),
        patch_size=shape.patch,
        in_chans=shape.channels,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=_truncated_ratio(shape),
        global_pool="avg" if shape.pool == "avg" else "token",
    )
    classifier = "head"
    if shape.dist_token:
        entry, classifier = "deit_base_distilled_patch16_224", ["head", "head_dist"]
        arrays = _two_heads(model, arrays)
    preprocessed = model.preprocessing
    size = [shape.channels, *shape.image_size]
    pictures = dict(
        architecture=entry,
        num_classes=shape.classes,
        input_size=size,
        interpolation="bicubic",
        crop_pct=preprocessed["crop_share"],
        crop_mode="center",
        mean=preprocessed["mean"],
        std=preprocessed["std"],
        first_conv="patch_embed.proj",
        classifier=classifier,
    )
    config = dict(
        architecture=entry,
        num_classes=shape.classes,
        num_features=shape.width,
        model_args=args,
        pretrained_cfg=pictures,
    )
    if preprocessed["class_names"]:
        config["label_names"] = preprocessed["class_names"]
    path = os.path.join(folder, "model.safetensors")
    _save(path, arrays, _rules(model))
    return [path, _write_json(os.path.join(folder, "config.json"), config)]


def _rules(model: Model) -> dict[str, str]:
    """Metadata of a safetensors file that other libraries load: how to read pictures.

    So that the file is judged here as its run was, which their configs can not say.
    """
    rules = {key: model.describe[key] for key in ("data",) if key in model.describe}
    return {"format": "pt", reading.OURS: json.dumps(rules)}


def check_plain(model: Encoder, file_format: str) -> None:
    """Refuses the parts of a foreign encoder, which that format is not written with."""
    options = variants.differences(model.shape.variant)
    options.pop("resize", None)
    if model.shape.classes and model.shape.pool not in ("cls", "avg"):
        options["pool"] = model.shape.pool
    if options:
        listed = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(
            f"{model.source} is no plain vision transformer ({listed}), and "
            f"--format={file_format} writes no other; use --format=stablehlo, "
            "safetensors or torch."
        )


def _truncated_ratio(shape: architecture.Architecture) -> float:
    """The ratio from which timm, which truncates, gets the hidden width."""
    hidden = round(shape.width * shape.mlp_ratio)
    exact = int(shape.width * shape.mlp_ratio) == hidden
    return shape.mlp_ratio if exact else (hidden + 0.5) / shape.width


def transformers(model: Encoder, folder: str) -> list[str]:
    """Writes a directory for the `from_pretrained` of transformers.

    A classifier becomes ViT (class token), BEiT without its relative positions (mean of
    the patches) or DeiT with a teacher (distillation token), an autoencoder ViTMAE.
    """
    shape = model.shape
    check_plain(model, "transformers")
    _check_two_heads(model, "transformers")
    model_type, name, arrays = _transformers_model(model)
    side = shape.image_size
    config = dict(
        architectures=[name],
        model_type=model_type,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=round(shape.width * shape.mlp_ratio),
        hidden_act="gelu",
        layer_norm_eps=shape.norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=side[0] if side[0] == side[1] else list(side),
        patch_size=shape.patch,
        num_channels=shape.channels,
        dtype="float32",
    )
    if model_type == "beit":
        config |= dict(
            use_mean_pooling=True,
            use_absolute_position_embeddings=True,
            use_relative_position_bias=False,
            use_shared_relative_position_bias=False,
            use_mask_token=False,
            layer_scale_init_value=0.0,
            drop_path_rate=0.0,
        )
    else:
        config["qkv_bias"] = True
    if shape.decoder:
        hidden = model.arrays["decoder_blocks.0.mlp.fc1.weight"].shape[0]
        config |= dict(
            decoder_hidden_size=shape.decoder.width,
            decoder_num_hidden_layers=shape.decoder.depth,
            decoder_num_attention_heads=shape.decoder.heads,
            decoder_intermediate_size=hidden,
            norm_pix_loss=model.describe.get("target") == "normalised",
        )
    if shape.classes:
        names = model.preprocessing["class_names"] or [
            f"LABEL_{i}" for i in range(shape.classes)
        ]
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    path = os.path.join(folder, "model.safetensors")
    renamed = transformers_names.to_transformers(arrays, model_type)
    _save(path, renamed, _rules(model))
    paths = [
        path,
        _write_json(os.path.join(folder, "config.json"), config),
        _write_json(
            os.path.join(folder, "preprocessor_config.json"), _processor(model)
        ),
    ]
    if side[0] != side[1]:
        parallel.print_once(
            f"No image processor of transformers cuts pictures to {side[0]}x{side[1]} "
            "pixels as evaluation does: the written one only normalises. Resize and "
            "cut them first, as preprocessing.json says."
        )
        program = dict(format="transformers", readout=model.readout)
        paths.append(write_preprocessing(model, folder, program))
    return paths


def _transformers_model(model: Encoder) -> tuple[str, str, Mapping[str, np.ndarray]]:
    """transformers' model_type, its class, and the arrays that belong to it."""
    shape = model.shape
    encoder = parts.without(model.arrays, parts.PRETRAINING_NAMES)
    if shape.classes and shape.dist_token:
        name = "DeiTForImageClassificationWithTeacher"
        return "deit", name, _two_heads(model, encoder)
    if shape.classes and shape.pool == "avg":
        return "beit", "BeitForImageClassification", encoder
    if shape.classes:
        return "vit", "ViTForImageClassification", encoder
    if shape.decoder and shape.pixel_head:
        autoencoder = parts.without(model.arrays, parts.DISTILLATION_NAMES)
        return "vit_mae", "ViTMAEForPreTraining", autoencoder
    return "vit_mae", "ViTMAEModel", encoder


def _processor(model: Encoder) -> dict:
    height, width = model.shape.image_size
    preprocessed = model.preprocessing
    # Of a model that is not square, which side has to be covered depends on the
    # picture; the library's processors know the shorter one alone.
    square = height == width
    return dict(
        image_processor_type="BitImageProcessor",
        do_convert_rgb=model.shape.channels == 3,
        do_resize=square,
        size={"shortest_edge": int(max(height, width) / preprocessed["crop_share"])},
        resample=transformers_names.BICUBIC,
        do_center_crop=square,
        crop_size={"height": height, "width": width},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=preprocessed["mean"],
        image_std=preprocessed["std"],
    )


def _check_two_heads(model: Encoder, library: str) -> None:
    if model.shape.dist_token and model.shape.pool == "avg":
        raise ValueError(
            f"{model.source} pools its patches and has a distillation token; no model "
            f"of {library} does both. Use --format=stablehlo, onnx, safetensors or "
            "torch, or train with config.model.pool=cls."
        )


def _two_heads(model: Encoder, arrays: Mapping[str, np.ndarray]) -> dict:
    """Arranges two heads as DeiT has them: the token second, the logits averaged.

    The row is zero, as G2SD's token has no position. Where one head alone is read, it
    is doubled and the other is zero, so that the average they take is that head.
    """
    table = arrays["pos_embed"]
    blank = np.zeros_like(table[:, :1])
    arrays = dict(
        arrays, pos_embed=np.concatenate([table[:, :1], blank, table[:, 1:]], axis=1)
    )
    for head, factor in (("head", "cls"), ("head_dist", "dist")):
        factor = {"mean": 1, factor: 2}.get(model.readout, 0)
        for leaf in ("weight", "bias"):
            arrays[f"{head}.{leaf}"] = arrays[f"{head}.{leaf}"] * np.float32(factor)
    return arrays


def _save(
    path: str, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    # The library's own writer would leave a file that only its owner may read.
    with open(path, "wb") as file:
        file.write(safetensors.numpy.save(contiguous, metadata))


def _write_json(path: str, value: Mapping) -> str:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return path
