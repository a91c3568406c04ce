# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The names of the library transformers (ViT, DeiT, ViTMAE, BEiT), both ways.

Its files say `encoder.layer.0.attention.attention.query`; the modules of its version 5
say `layers.0.attention.q_proj`. Both are read, and what hubs hold is written.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from g2sd_jax.weights import foreign_configs

KINDS = {"vit": "vit", "deit": "vit", "vit_mae": "mae"}  # model_type -> our kind
UNIQUE = "embeddings.patch_embeddings.projection.weight"  # Only they have it.

READ = (  # in this order: the longer name before the shorter one it holds
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    # Version 5.23 renames the decoder's layers on saving, too.
    (
        r"^decoder\.decoder_(layers|encoder\.layer)\.(\d+)\.",
        r"decoder_blocks.\2.",
    ),
    (r"^decoder\.", ""),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1_proj."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
BICUBIC = 3  # Pillow's number of it.
THIRDS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def is_transformers(arrays: Mapping) -> bool:
    """Whether a state dict has the library's names."""
    return any(name.endswith(UNIQUE) for name in arrays)


def from_transformers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their state dict under the names of MAE and timm; q, k and v become one."""
    renamed = {}
    for name, array in arrays.items():
        for pattern, new in READ:
            name = re.sub(pattern, new, name)
        renamed[name] = array
    for name in list(renamed):
        for thirds in THIRDS:
            first = f".attn.{thirds[0]}."
            if first not in name:
                continue
            parts = [name.replace(first, f".attn.{third}.") for third in thirds]
            if all(part in renamed for part in parts):
                joined = np.concatenate([renamed.pop(part) for part in parts])
                renamed[name.replace(first, ".attn.qkv.")] = joined
    return renamed


def to_transformers(
    arrays: Mapping[str, np.ndarray], model: str
) -> dict[str, np.ndarray]:
    """Renames a state dict to the names that hubs store.

    Args:
        arrays: by PyTorch name.
        model: vit, deit, vit_mae or beit: the prefix of the encoder's names follows.
    """
    prefix = "vit" if model == "vit_mae" else model
    renamed = {}
    for name, array in arrays.items():
        match = re.match(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)$", name)
        if match:
            decoder, index, part, leaf = match.groups()
            layer = "decoder.decoder_layers" if decoder else f"{prefix}.encoder.layer"
            for path, piece in _pieces(part, array):
                renamed[f"{layer}.{index}.{path}.{leaf}"] = piece
        else:
            renamed[_outside_blocks(name, prefix, model)] = array
    if model == "beit":
        # BEiT's key has no bias: the softmax does not see one.
        dropped = "attention.key.bias"
        renamed = {k: v for k, v in renamed.items() if not k.endswith(dropped)}
    return renamed


def _pieces(part: str, array: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    if part == "attn.qkv":
        return zip(
            (f"attention.attention.{third}" for third in THIRDS[0]),
            np.split(array, 3),
            strict=True,
        )
    inside = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    return [(inside[part], array)]


def _outside_blocks(name: str, prefix: str, model: str) -> str:
    stem, _, leaf = name.rpartition(".")
    embeddings = {
        "cls_token": "cls_token",
        "pos_embed": "position_embeddings",
        "dist_token": "distillation_token",
    }
    if name in embeddings:
        return f"{prefix}.embeddings.{embeddings[name]}"
    if name == "mask_token" or stem.startswith("decoder_") or "decoder_pos" in name:
        return f"decoder.{name}"
    head = "cls_classifier" if model == "deit" else "classifier"
    modules = {
        "patch_embed.proj": f"{prefix}.embeddings.patch_embeddings.projection",
        "norm": f"{prefix}.layernorm",
        "fc_norm": f"{prefix}.pooler.layernorm",
        "head": head,
        "head_dist": "distillation_classifier",
    }
    return f"{modules[stem]}.{leaf}"


def describe(config: Mapping, preprocessing: Mapping, source: str) -> dict:
    """Reads a description from config.json and preprocessor_config.json.

    Raises:
        ValueError: the model computes something else than ours.
    """
    model = config.get("model_type")
    if model not in KINDS:
        raise ValueError(
            f"{source} holds a model of type {model!r}; of transformers' models, "
            f"{', '.join((*KINDS, *foreign_configs.BY_TYPE))} can be read."
        )
    for key, wanted in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(key, wanted) != wanted:
            raise ValueError(
                f"{source}: its config.json says {key}={config[key]!r}; only "
                f"{wanted!r} is computed here."
            )
    # What they leave out is their default.
    width = config.get("hidden_size", 768)
    size, patch = config.get("image_size", 224), config.get("patch_size", 16)
    image_size = tuple(size) if isinstance(size, list) else (size, size)
    patches = set(patch) if isinstance(patch, list) else {patch}
    if len(patches) != 1:
        raise ValueError(
            f"{source}: its config.json says patch_size={patch!r}; only square patches "
            "are computed here."
        )
    [patch] = patches
    described = dict(
        kind=KINDS[model],
        model=dict(
            width=width,
            depth=config.get("num_hidden_layers", 12),
            heads=config.get("num_attention_heads", 12),
            patch=patch,
            image_size=image_size,
            channels=config.get("num_channels", 3),
            mlp_ratio=config.get("intermediate_size", 3072) / width,
            norm_eps=config.get("layer_norm_eps", 1e-12),
        ),
        grid=tuple(side // patch for side in image_size),
    )
    if model == "vit_mae":
        described["decoder"] = dict(
            width=config.get("decoder_hidden_size", 512),
            depth=config.get("decoder_num_hidden_layers", 8),
            heads=config.get("decoder_num_attention_heads", 16),
        )
        target = "normalised" if config.get("norm_pix_loss", False) else "raw"
        described["target"] = target
    if "id2label" in config:
        labels = {int(key): name for key, name in config["id2label"].items()}
        described["class_names"] = [labels[index] for index in sorted(labels)]
    for ours, key in (("mean", "image_mean"), ("std", "image_std")):
        if key in preprocessing:
            described[ours] = tuple(preprocessing[key])
    if preprocessing:
        share, described["other_rules"] = _crop(preprocessing, image_size)
        described["data"] = dict(source="folder", eval_crop=share)
    return described


def _crop(
    preprocessing: Mapping, image_size: tuple[int, int]
) -> tuple[float, list[str]]:
    """The share of a picture that is cut, and what is not done here as it says.

    Args:
        preprocessing: of preprocessor_config.json.
        image_size: (height, width) of the model's input.
    """
    others = []
    if preprocessing.get("resample", BICUBIC) != BICUBIC:
        others.append(f"resample={preprocessing['resample']!r}")
    size = preprocessing.get("size")
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if shorter and preprocessing.get("do_center_crop"):
        return min(1.0, max(image_size) / shorter), others
    if preprocessing.get("do_resize", True):  # Stretched, whatever the aspect.
        others.append(f"size={size!r}")
    return 1.0, others
