# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weight files as {PyTorch name: array}, without executing what is in them."""

import argparse
import importlib
import json
import os
import pickle

import numpy as np
import safetensors
import safetensors.numpy

HOLDERS = ("state_dict", "model", "module")  # Where a .pth keeps its state dict.


def read(path: str, key: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of a weight file and its description (empty for foreign files).

    Args:
        path: a .safetensors file, or a .pth or .pt one.
        key: the config key that named it, for errors.
    """
    readers = {".safetensors": _safetensors, ".pth": _torch, ".pt": _torch}
    ending = os.path.splitext(path)[1]
    if ending not in readers:
        raise ValueError(
            f"{key}={path!r}: a weight file ends in {', '.join(readers)}; a run's "
            "weights are named by its workdir."
        )
    arrays, describe = readers[ending](path, key)
    return {name: array.astype(np.float32) for name, array in arrays.items()}, describe


def _safetensors(path, key):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{key}={path!r} is not a safetensors file: {error}") from None
    return arrays, json.loads(metadata.get("g2sd_jax", "{}"))


def _torch(path, key):
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            f"{key}={path!r} takes PyTorch to read: pip install 'g2sd_jax[torch]', or "
            "convert the file to .safetensors."
        ) from None
    try:
        # Only tensors and plain containers are built, whatever the pickle asks for. The
        # scripts of MAE and G2SD keep their arguments beside the weights; those too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{key}={path!r} is not a plain PyTorch weight file: {reason}"
        ) from None
    state = None
    if isinstance(file, dict):
        state = next((file[key] for key in HOLDERS if key in file), file)
    if not state or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{key}={path!r} holds no state dict, neither itself nor as its "
            f"{', '.join(HOLDERS)}."
        )
    # Trained in parallel, everything is a part of a "module".
    return {
        name.removeprefix("module."): value.float().numpy()
        for name, value in state.items()
    }, {}
