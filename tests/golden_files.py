# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the golden files: numbers of the authors' PyTorch code to agree with."""

import os
import pathlib

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).resolve().parent
FOLDERS = {
    "classification": "",
    "segmentation": "segmentation",
    "detection": "detection",
}


def root() -> pathlib.Path:
    """$G2SD_GOLDEN_DIR, else the whole set beside the repository, else our part."""
    if "G2SD_GOLDEN_DIR" in os.environ:
        return pathlib.Path(os.environ["G2SD_GOLDEN_DIR"])
    beside = TESTS.parents[1] / "shared" / "golden"
    return beside if beside.is_dir() else TESTS / "golden"


def path(name: str, folder: str = "classification") -> pathlib.Path:
    """A golden file, or a skip of the test that asks for it."""
    found = root() / FOLDERS[folder] / name
    if not found.is_file():
        pytest.skip(f"no golden file {found}; set G2SD_GOLDEN_DIR to a folder with it")
    return found


def load(stem: str, folder: str = "classification") -> dict[str, np.ndarray]:
    """The arrays of `stem.npz` by key."""
    with np.load(path(f"{stem}.npz", folder), allow_pickle=False) as file:
        return dict(file)


def given(golden, key):
    """One value of the file's configuration."""
    return golden[f"config/{key}"].item()


def under(golden, prefix):
    """{rest of the key: array} of the keys that start with `prefix`/."""
    prefix += "/"
    return {
        key.removeprefix(prefix): value
        for key, value in golden.items()
        if key.startswith(prefix)
    }


def agree(got, want, what: str, bound: float = 2e-5) -> None:
    """Within `bound` of the wanted tensor's largest value, not element by element."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: {got.shape}, wanted {want.shape}"
    worst, largest = np.abs(got - want).max(), np.abs(want).max()
    assert worst <= bound * largest, f"{what}: off by {worst:.3g} of {largest:.3g}"
