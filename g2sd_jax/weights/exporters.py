# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finished weights as other tools load them, with the preprocessing they expect."""

import importlib
import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from g2sd_jax.weights import architecture, importers, transformers_names

TIMM = {  # Of a size: the entry of timm that is nearest; every number is stated anyway.
    "ti16": "vit_tiny_patch16_224",
    "s16": "vit_small_patch16_224",
    "l16": "vit_large_patch16_224",
    "h14": "vit_huge_patch14_224",
}


class Model(NamedTuple):
    """What is exported."""

    source: str
    arrays: Mapping[str, np.ndarray]  # by PyTorch name
    told: Mapping  # the checkpoint's description
    shape: architecture.Architecture
    readout: str  # cls, dist, mean: the head, or heads, whose answer counts
    preprocessing: Mapping


def preprocessing(told: Mapping, shape: architecture.Architecture) -> dict:
    """What has to be done to a picture before, and what the answers are called."""
    count = shape.channels
    each = lambda values: [float(value) for value in np.broadcast_to(values, count)]
    return dict(
        image_size=list(shape.image_size),
        channels=count,
        crop="resize to cover image_size / crop_share, then cut image_size centred",
        crop_share=told.get("eval_crop", 1.0),
        interpolation="bicubic, with antialiasing",
        mean=each(told["mean"]),
        std=each(told["std"]),
        mean_and_std="of pixels in 0..1",
        classes=shape.classes,
        class_names=list(told.get("class_names") or ()),
    )


def write_preprocessing(model: Model, folder: str, program: Mapping) -> str:
    """`preprocessing.json`, beside weights whose format has no place for it."""
    path = os.path.join(folder, "preprocessing.json")
    return _write_json(path, {**model.preprocessing, "program": dict(program)})


def safetensors_file(model: Model, folder: str) -> list[str]:
    """`model.safetensors` by PyTorch name; the description travels inside."""
    path = os.path.join(folder, "model.safetensors")
    metadata = {importers.OURS: json.dumps(dict(model.told))}
    _save(path, model.arrays, metadata)
    told = dict(format="safetensors, PyTorch names", readout=model.readout)
    return [path, write_preprocessing(model, folder, told)]


def torch_file(model: Model, folder: str) -> list[str]:
    """`model.pth`, {"model": state dict}, as the authors' scripts write and read it."""
    torch = pytorch()
    path = os.path.join(folder, "model.pth")
    copied = {n: torch.from_numpy(np.array(a)) for n, a in model.arrays.items()}
    torch.save({"model": copied, importers.OURS: json.dumps(dict(model.told))}, path)
    told = dict(format="PyTorch state dict under 'model'", readout=model.readout)
    return [path, write_preprocessing(model, folder, told)]


def pytorch():
    """The library, which only this format needs."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            "--format=torch takes PyTorch to write: pip install 'g2sd_jax[torch]', or "
            "--format=safetensors, which PyTorch reads as well."
        ) from None


def timm(model: Model, folder: str) -> list[str]:
    """A directory for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Of a masked autoencoder the encoder: timm has no decoder.
    """
    shape = model.shape
    _check_two_heads(model, "timm")
    arrays = _encoder(model.arrays)
    entry = TIMM.get(shape.size, "vit_base_patch16_224")
    args = dict(
        img_size=list(shape.image_size),
        patch_size=shape.patch,
        in_chans=shape.channels,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        global_pool="avg" if shape.pool == "avg" else "token",
    )
    classifier = "head"
    if shape.dist_token:
        entry, classifier = "deit_base_distilled_patch16_224", ["head", "head_dist"]
        arrays = _two_heads(model, arrays)
    told = model.preprocessing
    size = [shape.channels, *shape.image_size]
    pictures = dict(
        architecture=entry,
        num_classes=shape.classes,
        input_size=size,
        interpolation="bicubic",
        crop_pct=told["crop_share"],
        crop_mode="center",
        mean=told["mean"],
        std=told["std"],
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
    if told["class_names"]:
        config["label_names"] = told["class_names"]
    path = os.path.join(folder, "model.safetensors")
    _save(path, arrays, {"format": "pt"})
    return [path, _write_json(os.path.join(folder, "config.json"), config)]


def transformers(model: Model, folder: str) -> list[str]:
    """A directory for the `from_pretrained` of transformers.

    A classifier becomes ViT (class token), BEiT without its relative positions (mean of
    the patches) or DeiT with a teacher (distillation token), an autoencoder ViTMAE.
    """
    shape, told = model.shape, model.preprocessing
    _check_two_heads(model, "transformers")
    kind, name, arrays = _theirs(model)
    side = shape.image_size
    config = dict(
        architectures=[name],
        model_type=kind,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=round(shape.width * shape.mlp_ratio),
        hidden_act="gelu",
        layer_norm_eps=importers.LN_EPS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=side[0] if side[0] == side[1] else list(side),
        patch_size=shape.patch,
        num_channels=shape.channels,
        dtype="float32",
    )
    if kind == "beit":
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
            norm_pix_loss=model.told.get("target") == "normalised",
        )
    if shape.classes:
        names = told["class_names"] or [f"LABEL_{i}" for i in range(shape.classes)]
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    path = os.path.join(folder, "model.safetensors")
    _save(path, transformers_names.to_theirs(arrays, kind), {"format": "pt"})
    return [
        path,
        _write_json(os.path.join(folder, "config.json"), config),
        _write_json(
            os.path.join(folder, "preprocessor_config.json"), _processor(model)
        ),
    ]


def _theirs(model):
    """transformers' model_type, its class, and the arrays that belong to it."""
    shape = model.shape
    encoder = _encoder(model.arrays)
    if shape.classes and shape.dist_token:
        name = "DeiTForImageClassificationWithTeacher"
        return "deit", name, _two_heads(model, encoder)
    if shape.classes and shape.pool == "avg":
        return "beit", "BeitForImageClassification", encoder
    if shape.classes:
        return "vit", "ViTForImageClassification", encoder
    if shape.decoder and shape.pixel_head:
        whole = model.arrays.items()
        feature = ("encoderfeature_pred.", "decoderfeature_pred.", "aligned_feature")
        held = {name: array for name, array in whole if not name.startswith(feature)}
        return "vit_mae", "ViTMAEForPreTraining", held
    return "vit_mae", "ViTMAEModel", encoder


def _processor(model):
    height, width = model.shape.image_size
    told = model.preprocessing
    return dict(
        image_processor_type="BitImageProcessor",
        do_convert_rgb=model.shape.channels == 3,
        do_resize=True,
        size={"shortest_edge": int(max(height, width) / told["crop_share"])},
        resample=3,  # bicubic
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=told["mean"],
        image_std=told["std"],
    )


def _check_two_heads(model, library):
    if model.shape.dist_token and model.shape.pool == "avg":
        raise ValueError(
            f"{model.source} pools its patches and has a distillation token; no model "
            f"of {library} does both. Use --format=stablehlo, onnx, safetensors or "
            "torch, or train with config.model.pool=cls."
        )


def _encoder(arrays):
    """Without the parts of pre-training and distillation."""
    unused = ("decoder_", "mask_token", "encoderfeature", "decoderfeature", "aligned")
    return {name: a for name, a in arrays.items() if not name.startswith(unused)}


def _two_heads(model, arrays):
    """As DeiT has them: the token second, with a row of the table, heads averaged.

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


def _save(path, arrays, metadata):
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # The library's own writer would leave a file that only its owner may read.
    with open(path, "wb") as file:
        file.write(safetensors.numpy.save(whole, metadata))


def _write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return path
