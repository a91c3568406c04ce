# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in detectron2's .pkl files: NumPy arrays in a pickle, and nothing else."""

import codecs
import collections
import pickle

import numpy as np

# What a pickle of arrays calls; NumPy 2 renamed the modules.
ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
} | {
    (f"numpy.{core}.{module}", name): getattr(owner, name)
    for core in ("core", "_core")
    for module, owner, name in (
        ("multiarray", np._core.multiarray, "_reconstruct"),
        ("multiarray", np._core.multiarray, "scalar"),
        ("numeric", np._core.numeric, "_frombuffer"),
    )
}


class Unpickler(pickle.Unpickler):
    """Builds arrays and plain containers; whatever else a file calls is refused."""

    def find_class(self, module: str, name: str) -> object:
        """Looks a global of the pickle up in `ALLOWED`."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return ALLOWED[module, name]


def read(path: str, key: str) -> tuple[dict[str, np.ndarray], dict]:
    """Reads the arrays of a pickle, itself or under "model", and no description.

    Args:
        path: of the file.
        key: the config key that names it, for errors.
    Raises:
        ValueError: it holds anything else than arrays by name; nothing is executed.
    """
    try:
        with open(path, "rb") as file:
            content = Unpickler(file, encoding="latin1").load()
    except Exception as error:  # A damaged file can go wrong anywhere.
        reason = (str(error) or "it ends too early").splitlines()[0]
        raise ValueError(
            f"{key}={path!r} is not a pickle of NumPy arrays, and nothing in it was "
            f"executed: {reason}. If you trust its origin, load it in Python and save "
            "its arrays as .safetensors."
        ) from None
    arrays = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(arrays, dict) or not arrays:
        raise ValueError(
            f"{key}={path!r} holds no arrays by name, neither itself nor as its "
            "'model'."
        )
    for name, array in arrays.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise ValueError(
                f"{key}={path!r}: {name!r} is a {type(array).__name__} and no array; "
                "save the model's arrays alone."
            )
    return dict(arrays), {}
