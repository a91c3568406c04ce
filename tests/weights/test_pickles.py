# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pickles of arrays, and those that would do something else."""

import os
import pickle

import numpy as np
import pytest

from g2sd_jax.weights import loading

ARRAYS = {"backbone.net.pos_embed": np.arange(6, dtype=np.float32).reshape(1, 3, 2)}


def saved(folder, content, protocol=2):
    path = folder / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_read(tmp_path, protocol):
    beside = {"__author__": "someone", "matching_heuristics": True}
    for content in (ARRAYS, {"model": ARRAYS, **beside}):
        weights = loading.read(saved(tmp_path, content, protocol), "config.init_from")
        assert list(weights.arrays) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(weights.arrays[name], array)


class Call:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_what_a_file_calls_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {"model": ARRAYS | {"x": Call()}})
    words = rf"nothing in it was executed: it calls ({os.mkdir.__module__}|os)\.mkdir"
    with pytest.raises(ValueError, match=words):
        loading.read(path, "config.init_from")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (7, "no arrays by name"),
        ({"model": {}}, "no arrays by name"),
        ({"model": {"a": "text"}}, "'a' is a str and no array"),
        ({"a": np.array(["text"], object)}, "of type object"),
    ],
)
def test_anything_but_arrays_is_refused(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        loading.read(saved(tmp_path, content), "config.init_from")
    path = saved(tmp_path, ARRAYS)
    with open(path, "r+b") as file:
        file.truncate(40)
    with pytest.raises(ValueError, match="not a pickle of NumPy arrays"):
        loading.read(path, "config.init_from")
