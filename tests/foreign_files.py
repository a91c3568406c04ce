# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in the layout of other projects, of random numbers, without PyTorch."""

import json
import pathlib

import numpy as np
import safetensors.numpy


def dinov2(path: pathlib.Path, width: int = 24, depth: int = 2) -> pathlib.Path:
    """Writes a DINOv2 with two heads as transformers does: a directory.

    Args:
        path: of the directory, which is made.
        width: of the encoder.
        depth: in blocks.

    Returns:
        The path.
    """
    rng = np.random.default_rng(0)
    patch, grid = 14, 4
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + grid**2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    square = ["attention.attention.query", "attention.attention.key"]
    square += ["attention.attention.value", "attention.output.dense"]
    linear = dict.fromkeys(square, (width, width))
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in (f"encoder.layer.{i}." for i in range(depth)):
        for name, shape in linear.items():
            shapes[f"{block}{name}.weight"] = shape
            shapes[f"{block}{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[block + name] = (width,)
        for i in (1, 2):
            shapes[f"{block}layer_scale{i}.lambda1"] = (width,)
    shapes |= {"layernorm.weight": (width,), "layernorm.bias": (width,)}
    arrays = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    config = dict(
        model_type="dinov2",
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        image_size=grid * patch,
        patch_size=patch,
    )
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    return path
