# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weight files as {PyTorch name: array}, without executing what is in them."""

import argparse
import importlib
import json
import math
import os
import pickle
import re
import warnings

import numpy as np
import safetensors
import safetensors.numpy

from g2sd_jax import metrics
from g2sd_jax.weights import catalogue, transformers_names

OURS = "g2sd_jax"  # The key of our description in a file.
LN_EPS = 1e-6  # That of models.layers.
HOLDERS = ("state_dict", "model", "module")  # Where a .pth keeps its state dict.


def read(path: str, key: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of a weight file and its description (empty for most foreign files).

    Args:
        path: a .safetensors file; a .pth, .pt or .bin one; or a directory of timm or
            transformers, with a config.json.
        key: the config key that named it, for errors.
    """
    arrays, told = _directory(path, key) if os.path.isdir(path) else _file(path, key)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    if transformers_names.theirs(arrays):
        arrays = transformers_names.to_ours(arrays)
    arrays = _without_position(arrays, told)
    file = catalogue.named(path)
    if file is not None:
        told = dict(mean=catalogue.MEAN, std=catalogue.STD) | told
        if file.target:
            told = dict(target=file.target) | told
    eps = told.get("norm_eps", LN_EPS)
    if eps != LN_EPS:
        metrics.say(
            f"{path}: its LayerNorms add {eps:g} to the variance, here {LN_EPS:g} is "
            "added (as MAE, timm and Google's ViT were trained); outputs may differ "
            "where a token varies little over its channels."
        )
    return arrays, told


def is_directory(path: str) -> bool:
    """Whether a folder holds a model as timm and transformers store one."""
    return os.path.isfile(os.path.join(path, "config.json")) and any(
        os.path.isfile(os.path.join(path, name)) for name in WHOLE
    )


def _file(path, key):
    ending = os.path.splitext(path)[1]
    if ending not in READERS:
        raise ValueError(
            f"{key}={path!r}: a weight file ends in {', '.join(READERS)}; a run's "
            "weights are named by its workdir, a model of transformers or timm by its "
            "directory."
        )
    _check_beginning(path, ending, key)
    return READERS[ending](path, key)


def _check_beginning(path, ending, key):
    """Says what a file is that is not what its name promises."""
    with open(path, "rb") as file:
        first = file.read(64)
    advice = None
    if not first:
        advice = "it is empty; download it again"
    elif first.lstrip()[:1] == b"<":
        advice = "it is a web page; download the file itself"
    elif first.startswith(b"version https://git-lfs"):
        advice = "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    elif ending == ".safetensors" and first[:2] in (b"PK", b"\x80\x02"):
        advice = "it was written by PyTorch; name it .pth"
    elif ending != ".safetensors" and first[8:9] == b"{":
        advice = "it is a safetensors file; name it .safetensors"
    if advice:
        raise ValueError(f"{key}={path!r} is no {ending} file: {advice}.")


def _safetensors(path, key):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{key}={path!r} is not a whole safetensors file ({error}); it may be cut "
            "short or damaged: compare its size with the original's."
        ) from None
    return arrays, _description(metadata.get(OURS, "{}"), path, key)


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
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with allowed, warnings.catch_warnings():
            # The file is read or refused, whatever protocol it was written with.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            file = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its other lines advise to execute the file.
        lines = str(error).splitlines()
        reason = [line for line in lines if re.search("GLOBAL|Unsupported", line)]
        reason = (reason or ["it holds more than tensors and containers"])[0].strip()
        raise ValueError(
            f"{key}={path!r} is not a plain PyTorch weight file, and nothing in it was "
            f"executed: {reason.rstrip('.')}. If you trust its origin, load it in "
            "PyTorch and save its state dict alone."
        ) from None
    except Exception as error:  # A damaged file can go wrong anywhere.
        reason = (str(error) or "it ends too early").splitlines()[0]
        raise ValueError(
            f"{key}={path!r} is not a plain PyTorch weight file ({reason}); it may be "
            "cut short or damaged: compare its size with the original's."
        ) from None
    state, told = file, {}
    if isinstance(file, dict):
        told = _description(file.get(OURS, "{}"), path, key)
        state = next((file[k] for k in HOLDERS if k in file), file)
    values = list(state.values()) if isinstance(state, dict) else []
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise ValueError(
            f"{key}={path!r} holds no state dict, neither itself nor as its "
            f"{', '.join(HOLDERS)}."
        )
    # What DistributedDataParallel puts before every name.
    names = {name: name.removeprefix("module.") for name in state}
    return {names[name]: value.float().numpy() for name, value in state.items()}, told


READERS = {".safetensors": _safetensors, ".pth": _torch, ".pt": _torch, ".bin": _torch}
INDEX = "model.safetensors.index.json"
WHOLE = ("model.safetensors", INDEX, "pytorch_model.bin")


def _description(text, path, key):
    try:
        told = json.loads(text)
    except (ValueError, TypeError):
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"{key}={path!r}: its entry {OURS!r} is not a JSON object.")
    return told


def _directory(path, key):
    found = next(name for name in WHOLE if os.path.isfile(os.path.join(path, name)))
    config = _json(os.path.join(path, "config.json"), key)
    if found == INDEX:
        index = _json(os.path.join(path, INDEX), key)
        arrays = {}
        for shard in sorted(set(index.get("weight_map", {}).values())):
            arrays |= _file(os.path.join(path, os.path.basename(shard)), key)[0]
    else:
        arrays, _ = _file(os.path.join(path, found), key)
    if "pretrained_cfg" in config:
        return arrays, _timm(config)
    name = os.path.join(path, "preprocessor_config.json")
    preprocessing = _json(name, key) if os.path.isfile(name) else {}
    return arrays, transformers_names.describe(config, preprocessing, f"{key}={path!r}")


def _timm(config):
    """What a directory of timm tells; the rest is read off the shapes."""
    args, pictures = config.get("model_args", {}), config["pretrained_cfg"]
    told = {"kind": "vit"}
    if "num_heads" in args:
        told["model"] = dict(heads=args["num_heads"])
    told |= {k: tuple(pictures[k]) for k in ("mean", "std") if k in pictures}
    if "input_size" in pictures:
        patch = args.get("patch_size")
        if patch:
            told["grid"] = tuple(side // patch for side in pictures["input_size"][1:])
    if "label_names" in config:
        told["class_names"] = list(config["label_names"])
    return told


def _json(path, key):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{key}: {path} is not JSON: {error}") from None


def _without_position(arrays, told):
    """DeiT's distillation token as G2SD has it: last, and with no position of its own.

    DeiT puts it second and adds row 1 of the table to it. Attention does not see the
    order, so that row is added to the token once and taken out of the table.
    """
    if "dist_token" not in arrays or "pos_embed" not in arrays:
        return arrays
    table = arrays["pos_embed"]
    patches = table.shape[1] - 2
    if told.get("grid"):
        deit = math.prod(told["grid"]) == patches
    else:  # The patches of most models make a square.
        deit = math.isqrt(patches) ** 2 == patches
    if not deit:
        return arrays
    return {
        **arrays,
        "dist_token": arrays["dist_token"] + table[:, 1:2],
        "pos_embed": np.concatenate([table[:, :1], table[:, 2:]], axis=1),
    }
