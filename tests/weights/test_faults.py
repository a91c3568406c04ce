# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weight files as people have them: wrapped names, broken numbers, odd headers."""

import json
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import finished_runs
from g2sd_jax import cli
from g2sd_jax.weights import loading, prefixes, torch_names

KEY = "config.init_from"


@pytest.fixture(scope="module")
def arrays():
    return torch_names.to_torch(finished_runs.made("finetune")[2]["params"])


def saved(path, arrays, **description):
    metadata = {"g2sd_jax": json.dumps(description)} if description else None
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    return str(path)


# Prefixes.


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "model.backbone.",
        "model.student.encoder.",
    ],
)
def test_a_prefix_of_all_names_is_taken_off(arrays, prefix, tmp_path, capsys):
    wrapped = {f"{prefix}{name}": array for name, array in arrays.items()}
    path = saved(tmp_path / "a.safetensors", wrapped)
    weights = loading.read(path, KEY)
    assert weights.arrays.keys() == arrays.keys()
    out = capsys.readouterr().out
    assert f"{path}: " in out and "is taken off the names of its weights" in out
    for part in prefix.split("."):
        assert part in out


def test_what_wrappers_insert_is_taken_off_everywhere(arrays):
    inserted = {
        name.replace("blocks.1.", "blocks.1._orig_mod."): array
        for name, array in arrays.items()
    }
    assert prefixes.strip(inserted)[0].keys() == arrays.keys()
    averaged = {f"module.{name}": array for name, array in arrays.items()}
    averaged["n_averaged"] = np.int64(3)
    assert prefixes.strip(averaged)[0].keys() == arrays.keys()


def test_names_without_prefix_stay(arrays, capsys):
    assert prefixes.strip(arrays) == (arrays, [])
    for names in (
        ["fc.weight", "fc.bias"],
        ["head.0.running_mean", "head.0.running_var"],
        ["patch_embed.proj.weight", "patch_embed.proj.bias"],
        ["backbone.patch_embed.proj.weight", "decode_head.conv_seg.weight"],
        ["backbone.patch_embed.proj.weight", "backbone.fpn1.0.weight"],
        ["vit.embeddings.patch_embeddings.projection.weight", "vit.layernorm.bias"],
    ):
        assert list(prefixes.strip(dict.fromkeys(names))[0]) == names


def test_a_segmentor_keeps_its_own(tmp_path):
    arrays = torch_names.to_torch(finished_runs.made("specific_seg")[2])
    for prefix in ("module.", "model."):
        wrapped = {f"{prefix}{name}": array for name, array in arrays.items()}
        path = saved(tmp_path / "a.safetensors", wrapped)
        assert loading.read(path, KEY).arrays.keys() == arrays.keys()
    backbone = [name for name in arrays if name.startswith("backbone.")]
    wrapped = {f"module.{name}": arrays[name] for name in backbone}
    assert list(prefixes.strip(wrapped)[0]) == backbone


def test_a_prefix_of_some_names_is_named(arrays, tmp_path, capsys):
    wrapped = {f"net.{name}": array for name, array in arrays.items()}
    path = saved(tmp_path / "a.safetensors", wrapped | {"loss.weight": np.ones(2)})
    assert cli.main(["inspect", path]) == 2
    told = "Some names begin with 'net.', but loss.weight do not"
    assert told in capsys.readouterr().err


# Numbers.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_numbers_are_refused(arrays, value, tmp_path, capsys):
    bias = arrays["blocks.1.norm1.bias"].copy()
    bias[3] = value
    path = saved(tmp_path / "a.safetensors", {**arrays, "blocks.1.norm1.bias": bias})
    with pytest.raises(ValueError, match=r"norm1\.bias \(1 in all\) hold NaN"):
        loading.read(path, KEY)
    assert cli.main(["inspect", path]) == 0  # It only says what there is.
    assert "NOT FINITE: blocks.1.norm1.bias" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_read(arrays, dtype, tmp_path):
    dtype = jnp.dtype(dtype)
    path = saved(
        tmp_path / "a.safetensors", {n: a.astype(dtype) for n, a in arrays.items()}
    )
    for name, array in loading.read(path, KEY).arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name].astype(dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_quantised_numbers_are_refused(arrays, dtype, tmp_path, capsys):
    name = "blocks.1.attn.qkv.weight"
    quantised = {**arrays, name: arrays[name].astype(dtype)}
    path = saved(tmp_path / "a.safetensors", quantised)
    assert cli.main(["inspect", path]) == 2
    error = capsys.readouterr().err
    assert f"{name} is of type {dtype}" in error and error.count("\n") == 1


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_are_refused(dtype, tmp_path, capsys):
    header = {"a.weight": dict(dtype=dtype, shape=[8], data_offsets=[0, 8])}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert cli.main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"a.weight is of type {dtype}" in error and "save it again" in error
    assert error.count("\n") == 1


# Files.


@pytest.mark.parametrize("length", [640, 15392, 19280, 8224, 2570 * 8])
def test_a_header_of_any_length_is_read(arrays, length, tmp_path):
    """Of which some look like a pickle, a web page or an archive."""
    path = saved(tmp_path / "a.safetensors", {"cls_token": np.ones((1, 1, 8), "f4")})
    content = (tmp_path / "a.safetensors").read_bytes()
    own = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + own].ljust(length)
    assert len(header) == length
    header = struct.pack("<Q", length) + header
    (tmp_path / "a.safetensors").write_bytes(header + content[8 + own :])
    assert list(loading.read(path, KEY).arrays) == ["cls_token"]
    os.rename(path, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="it is a safetensors file; name it"):
        loading.read(str(tmp_path / "a.pth"), KEY)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "shard"])
def test_what_is_no_ordinary_file_is_refused(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "shard":
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "vit"}')
        index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        os.mkfifo(path / "1.safetensors")
    else:
        os.mkfifo(path)
    assert cli.main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert "is no ordinary file" in error and error.count("\n") == 1
