# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the golden files: numbers of the authors' PyTorch code to agree with."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).resolve().parent
FOLDERS = {
    "classification": "",
    "segmentation": "segmentation",
    "detection": "detection",
}


def root() -> pathlib.Path:
    """$G2SD_GOLDEN_DIR, else the full set beside the repository, else our part."""
    if "G2SD_GOLDEN_DIR" in os.environ:
        return pathlib.Path(os.environ["G2SD_GOLDEN_DIR"])
    beside = TESTS.parents[1] / "shared" / "golden"
    return beside if beside.is_dir() else TESTS / "golden"


def path(name: str, folder: str = "classification") -> pathlib.Path:
    """The path of a golden file; skips the test that asks for one that is missing."""
    file = root() / FOLDERS[folder] / name
    if not file.is_file():
        pytest.skip(f"no golden file {file}; set G2SD_GOLDEN_DIR to a folder with it")
    return file


def load(stem: str, folder: str = "classification") -> dict[str, np.ndarray]:
    """The arrays of `stem.npz` by key."""
    with np.load(path(f"{stem}.npz", folder), allow_pickle=False) as file:
        return dict(file)


def setting(golden: Mapping[str, np.ndarray], key: str) -> int | float | str:
    """One value of the configuration in a golden file."""
    return golden[f"config/{key}"].item()


def under(golden: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """{rest of the key: array} of the keys that start with `prefix`/."""
    prefix += "/"
    return {
        key.removeprefix(prefix): value
        for key, value in golden.items()
        if key.startswith(prefix)
    }


def agree(got: np.ndarray, want: np.ndarray, what: str, bound: float = 2e-5) -> None:
    """Asserts that no element is off by more than `bound` of the largest wanted one.

    Args:
        got: an array.
        want: the array it should be.
        what: its name in the assertion.
        bound: relative to the largest magnitude in `want`.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: {got.shape}, wanted {want.shape}"
    worst, largest = np.abs(got - want).max(), np.abs(want).max()
    assert worst <= bound * largest, f"{what}: off by {worst:.3g} of {largest:.3g}"
