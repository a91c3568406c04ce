# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weight files as {PyTorch name: array}, without executing what is in them."""

import json

import numpy as np
import safetensors
import safetensors.numpy


def read(path: str, key: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of a safetensors file and its description (empty for foreign files).

    Args:
        path: the file.
        key: the config key that named it, for errors.
    """
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{key}={path!r}: weight files are read as .safetensors; convert a .pth "
            "once with torch.load(..., weights_only=True) and safetensors.torch."
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{key}={path!r} is not a safetensors file: {error}") from None
    describe = json.loads(metadata.get("g2sd_jax", "{}"))
    return {name: array.astype(np.float32) for name, array in arrays.items()}, describe
