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
from collections.abc import Callable, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from g2sd_jax import errors, parallel
from g2sd_jax.models import vit
from g2sd_jax.weights import (
    catalogue,
    foreign_configs,
    foreign_names,
    grids,
    parts,
    pickles,
    prefixes,
    timm_config,
    timm_foreign,
    transformers_names,
)

OURS = "g2sd_jax"  # The key of our description in a file.
HOLDERS = ("state_dict", "model", "module")  # Where a .pth keeps its state dict.
AVERAGES = ("model_ema", "state_dict_ema", "ema")  # Of its weights over the steps.
LONGEST_HEADER = 100_000_000  # Bytes that a safetensors header may have.
FLOATS = ("float16", "bfloat16", "float32", "float64")
INDEX = "model.safetensors.index.json"  # The shards of a large model.
WEIGHT_FILES = ("model.safetensors", INDEX, "pytorch_model.bin")  # Of a directory.


def read(path: str, key: str) -> tuple[dict[str, np.ndarray], dict]:
    """Reads the arrays of a weight file and its description.

    Args:
        path: a .safetensors file; a .pth, .pt or .bin one; a .pkl of detectron2; or a
            directory of timm or transformers, with a config.json.
        key: the config key that names the file, for errors.
    Returns:
        Arrays by PyTorch name, float32, and the description; {} of most foreign files.
    Raises:
        ValueError: the file is not what its name promises, or damaged.
    """
    describe = {}
    if os.path.isdir(path):
        arrays, rules = _directory(path, key)
    else:
        arrays, describe = _file(path, key)
        arrays = _unwrapped(arrays, path, key)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays, foreign = foreign_names.translate(arrays, f"{key}={path!r}")
    if transformers_names.is_transformers(arrays):
        arrays = transformers_names.from_transformers(arrays)
    if os.path.isdir(path):
        arrays, describe = _described(arrays, path, key)
        describe |= rules
    describe = _completed(describe, foreign)
    arrays = _without_position(arrays, describe)
    published = catalogue.by_name(path)
    if published is not None:
        side = catalogue.SIDE // vit.SIZES[published.size][3]
        published_facts = dict(
            mean=catalogue.MEAN, std=catalogue.STD, grid=(side, side)
        )
        describe = published_facts | describe
        if published.target:
            describe = dict(target=published.target) | describe
    return arrays, describe


def is_directory(path: str) -> bool:
    """Whether a folder holds a model as timm and transformers store one."""
    return os.path.isfile(os.path.join(path, "config.json")) and any(
        os.path.isfile(os.path.join(path, name)) for name in WEIGHT_FILES
    )


def _file(path: str, key: str) -> tuple[dict, dict]:
    ending = os.path.splitext(path)[1]
    if ending not in READERS:
        raise ValueError(
            f"{key}={path!r}: a weight file ends in {', '.join(READERS)}; a run's "
            "weights are named by its workdir, a model of transformers or timm by its "
            "directory."
        )
    if not os.path.isfile(path):
        what = "is no ordinary file" if os.path.exists(path) else "does not exist"
        raise ValueError(f"{key}={path!r} {what}: name a weight file of this machine.")
    _check_beginning(path, ending, key)
    return READERS[ending](path, key)


def _unwrapped(arrays: Mapping, path: str, key: str) -> dict[str, np.ndarray]:
    """Arrays without the prefix that all their names have; checks their types."""
    arrays, removed = prefixes.strip(arrays)
    if removed:
        parallel.print_once(
            f"{path}: {' and '.join(map(repr, removed))} is taken off the names of "
            "its weights"
        )
    _check_types(arrays, path, key)
    return arrays


def _check_types(arrays: Mapping[str, np.ndarray], path: str, key: str) -> None:
    """Refuses weights that are no floating-point numbers, such as quantised ones."""
    for name, array in arrays.items():
        if array.dtype.name in FLOATS or any(
            re.fullmatch(p, name) for p in parts.BUFFERS
        ):
            continue
        raise _wrong_type(name, array.dtype.name, path, key)


def _wrong_type(name: str, dtype: str, path: str, key: str) -> ValueError:
    return ValueError(
        f"{key}={path!r}: {name} is of type {dtype}; weights are read as "
        f"{', '.join(FLOATS)}: convert the model to one of them and save it again."
    )


def _check_beginning(path: str, ending: str, key: str) -> None:
    """Refuses a file whose first bytes are those of another format."""
    with open(path, "rb") as file:
        first = file.read(64)
    # The header's length comes first, and may look like another format: 19280 is "PK".
    length = int.from_bytes(first[:8], "little")
    is_safetensors = first[8:9] == b"{" and length <= LONGEST_HEADER
    if is_safetensors and ending == ".safetensors":
        return
    advice = None
    if not first:
        advice = "it is empty; download it again"
    elif is_safetensors:
        advice = "it is a safetensors file; name it .safetensors"
    elif first.lstrip()[:1] == b"<":
        advice = "it is a web page; download the file itself"
    elif first.startswith(b"version https://git-lfs"):
        advice = "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    elif ending == ".safetensors" and first[:2] in (b"PK", b"\x80\x02"):
        advice = "it was written by PyTorch; name it .pth"
    if advice:
        raise ValueError(f"{key}={path!r} is no {ending} file: {advice}.")


def _safetensors(path: str, key: str) -> tuple[dict, dict]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            types = {name: file.get_slice(name).get_dtype() for name in names}
        for name, dtype in types.items():
            # Those of 8 bits and less, which numpy lacks.
            if dtype.startswith("F") and dtype not in ("F16", "F32", "F64"):
                raise _wrong_type(name, dtype, path, key)
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{key}={path!r} is not a whole safetensors file ({error}); it may be cut "
            "short or damaged: compare its size with the original's."
        ) from None
    return arrays, _description(metadata.get(OURS, "{}"), path, key)


def _torch(path: str, key: str) -> tuple[dict, dict]:
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
    describe = {}
    if isinstance(file, dict):
        describe = _description(file.get(OURS, "{}"), path, key)
    state = _state_dict(file, torch.Tensor, path, key)
    return {
        n: _torch_array(n, value, path, key) for n, value in state.items()
    }, describe


def _state_dict(file: object, tensor: type, path: str, key: str) -> dict:
    """The state dict that a .pth holds, itself or under one of its keys.

    Args:
        file: what PyTorch has loaded.
        tensor: PyTorch's type.
        path: of the file.
        key: the config key that names it, for errors.
    """

    def is_state_dict(value: object) -> bool:
        return (
            isinstance(value, dict)
            and bool(value)
            and all(isinstance(entry, tensor) for entry in value.values())
        )

    beside = []
    while isinstance(file, dict) and not is_state_dict(file):
        holders = [k for k in (*HOLDERS, *AVERAGES) if isinstance(file.get(k), dict)]
        beside = [
            str(k) for k in file if is_state_dict(file[k]) and k not in holders[:1]
        ]
        if not holders:
            break
        if beside or holders[0] in AVERAGES:
            others = errors.shorten_list(beside)
            parallel.print_once(
                f"{path}: the weights under {holders[0]!r} are taken"
                + (f", not those under {others} (save those alone)" if beside else "")
            )
        file, beside = file[holders[0]], []
    if not is_state_dict(file):
        raise ValueError(
            f"{key}={path!r} holds no state dict, neither itself nor as its "
            f"{', '.join(HOLDERS)}."
            + (f" Save {' or '.join(beside[:4])} alone." if beside else "")
        )
    numbered = [name for name in file if not isinstance(name, str)]
    if numbered:
        raise ValueError(
            f"{key}={path!r}: its tensors are called {numbered[0]!r} and the like, not "
            "by names; save the state dict of the model."
        )
    return file


def _torch_array(name: str, value, path: str, key: str) -> np.ndarray:
    """The numbers of a tensor; refuses one that has none, or packs them."""
    fault = None
    if value.is_meta:
        fault = "a meta tensor, which has a shape but no values"
    elif value.is_quantized:
        fault = "quantised"
    elif value.is_nested:
        fault = "nested"
    elif str(value.layout) != "torch.strided":
        fault = f"of layout {str(value.layout).removeprefix('torch.')}"
    elif value.is_floating_point() and value.dtype.itemsize < 2:
        fault = f"of type {str(value.dtype).removeprefix('torch.')}"
    if fault:
        raise ValueError(
            f"{key}={path!r}: {name} is {fault}; load the model in PyTorch, convert it "
            "to dense float32 and save its state dict again."
        )
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


READERS: dict[str, Callable[[str, str], tuple[dict, dict]]] = {
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".bin": _torch,
    ".pkl": pickles.read,
}


def _description(text: str, path: str, key: str) -> dict:
    try:
        describe = json.loads(text)
    except (ValueError, TypeError):
        describe = None
    if not isinstance(describe, dict):
        raise ValueError(f"{key}={path!r}: its entry {OURS!r} is not a JSON object.")
    grid = describe.get("grid") or [1, 1]
    if not (isinstance(grid, list) and len(grid) == 2 and all(map(_is_count, grid))):
        raise ValueError(
            f"{key}={path!r}: its entry {OURS!r} says grid={grid!r}; it has to be "
            "[rows, columns] of patches."
        )
    return describe


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _directory(path: str, key: str) -> tuple[dict, dict]:
    is_there = lambda name: os.path.isfile(os.path.join(path, name))
    file_name = next(filter(is_there, WEIGHT_FILES))
    ours = {}
    if file_name == INDEX:
        index = _json(os.path.join(path, INDEX), key)
        arrays = {}
        for shard in sorted(set(index.get("weight_map", {}).values())):
            arrays |= _file(os.path.join(path, os.path.basename(shard)), key)[0]
    else:
        arrays, ours = _file(os.path.join(path, file_name), key)
    # An export of ours says more exactly how its pictures are read.
    rules = {name: ours[name] for name in ("data",) if name in ours}
    return _unwrapped(arrays, path, key), rules


def _described(arrays: Mapping, path: str, key: str) -> tuple[dict, dict]:
    """The arrays of a directory, as its config.json wants them, and its description."""
    config = _json(os.path.join(path, "config.json"), key)
    source = f"{key}={path!r}"
    if timm_config.is_timm(config):
        entry = timm_foreign.find(config.get("architecture"))
        if entry is not None:
            describe = timm_foreign.describe(entry, config, arrays, source)
            patches = math.prod(describe.get("grid", (0,)))
            if "pos_embed" in arrays and arrays["pos_embed"].shape[1] == patches:
                arrays = foreign_names.with_class_row(arrays)
            return dict(arrays), describe
        describe = timm_config.describe(config, arrays, source)
        return timm_config.adapt(arrays, config), describe
    name = os.path.join(path, "preprocessor_config.json")
    preprocessing = _json(name, key) if os.path.isfile(name) else {}
    library = transformers_names
    if foreign_configs.is_foreign(config):
        library = foreign_configs
    return dict(arrays), library.describe(config, preprocessing, source)


def _completed(describe: dict, foreign: Mapping) -> dict:
    """A description with what is known of a foreign family, where it is silent."""
    if not foreign:
        return describe
    model = describe.get("model", {})
    variant = {**foreign["model"]["variant"], **(model.get("variant") or {})}
    completed = {**foreign["model"], **model, "variant": variant}
    return {**foreign, **describe, "model": completed}


def _json(path: str, key: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{key}: {path} is not JSON: {error}") from None


def _without_position(arrays: dict, describe: Mapping) -> dict:
    """Moves the position of DeiT's distillation token into the token, as in G2SD.

    DeiT puts it second and adds row 1 of the table to it. Attention does not see the
    order, so that row is added to the token once and taken out of the table.
    """
    if "dist_token" not in arrays or "pos_embed" not in arrays:
        return arrays
    table = arrays["pos_embed"]
    patches = table.shape[1] - 2
    grid = grids.stated(arrays, describe)
    # The patches of most models make a square.
    count = math.prod(grid) if grid else math.isqrt(patches) ** 2
    if count != patches:
        return arrays
    return {
        **arrays,
        "dist_token": arrays["dist_token"] + table[:, 1:2],
        "pos_embed": np.concatenate([table[:, :1], table[:, 2:]], axis=1),
    }
