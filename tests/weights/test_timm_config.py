# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A timm directory's config.json is obeyed, or refused by the part that differs."""

import json

import numpy as np
import pytest
import safetensors.numpy

import finished_runs
from g2sd_jax.weights import loading, torch_names


@pytest.fixture(scope="module")
def arrays():
    """Of a classifier: 16 wide, patches of 4."""
    model = dict(pool="cls")
    return torch_names.to_torch(finished_runs.made("finetune", model)[2]["params"])


def read(folder, arrays, architecture="vit_small_patch4_16", **args):
    pictures = dict(input_size=[3, 16, 16])
    config = dict(architecture=architecture, model_args=args, pretrained_cfg=pictures)
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    return loading.read(str(folder), "config.init_from")


@pytest.mark.parametrize(
    "key, value",
    [
        ("global_pool", "max"),
        ("global_pool", "avgmax"),
        ("global_pool", "map"),
        ("global_pool", ""),
        ("pool_include_prefix", True),
        ("act_layer", "quick_gelu"),
        ("act_layer", "gelu_tanh"),
        ("norm_layer", "rmsnorm"),
        ("class_token", False),
        ("block_fn", "ResPostBlock"),
        ("block_fn", "ParallelScalingBlock"),
        ("mlp_layer", "SwiGLU"),
        ("qkv_bias", False),
        ("qk_norm", True),
        ("pre_norm", True),
        ("final_norm", False),
        ("init_values", 1e-5),
        ("reg_tokens", 4),
        ("patch_size", [4, 8]),
        ("rope_type", "mixed"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(arrays, key, value, tmp_path):
    with pytest.raises(ValueError, match=f"its config.json says {key}="):
        read(tmp_path, arrays, **{key: value})


def test_a_mean_of_normed_patches_is_refused(arrays, tmp_path):
    with pytest.raises(ValueError, match="says fc_norm=False"):
        read(tmp_path, arrays, global_pool="avg", fc_norm=False)
    encoder = {n: a for n, a in arrays.items() if not n.startswith("head.")}
    read(tmp_path, encoder, global_pool="avg", fc_norm=False)  # Nothing pools it.


@pytest.mark.parametrize(
    "name", ["vit_pe_core_base_patch16_224", "vit_base_patch16_rpn_224", "eva02_tiny"]
)
def test_another_architecture_is_refused(arrays, name, tmp_path):
    with pytest.raises(ValueError, match=f"says architecture='{name}'"):
        read(tmp_path, arrays, name)


@pytest.mark.parametrize(
    "name, args, heads, grid",
    [
        ("vit_small_patch4_16", {}, 6, (4, 4)),
        ("deit_tiny_patch4_16", {}, 3, (4, 4)),
        ("vit_base_patch16_224", dict(patch_size=[4, 4]), 12, (4, 4)),
        ("vit_base_patch16_224", dict(num_heads=2, patch_size=8), 2, (2, 2)),
        ("vit_huge_patch4_16", dict(img_size=[8, 32]), 16, (2, 8)),
        ("vit_base_patch4_16", dict(img_size=16), 12, (4, 4)),
    ],
)
def test_heads_and_grid_come_from_either(arrays, name, args, heads, grid, tmp_path):
    describe = read(tmp_path, arrays, name, **args).describe
    assert describe["model"]["heads"] == heads and describe["grid"] == grid


def test_positions_of_patches_alone_get_a_row_for_the_class(arrays, tmp_path):
    table = arrays["pos_embed"]
    shorter = {**arrays, "pos_embed": table[:, 1:]}
    for name, args in (
        ("vit_small_patch4_16", dict(no_embed_class=True)),
        ("flexivit_small", dict(patch_size=4)),
    ):
        got = read(tmp_path, shorter, name, **args).arrays["pos_embed"]
        np.testing.assert_array_equal(got[:, 1:], table[:, 1:])
        assert not got[:, 0].any()


def test_labels_by_index_are_names(arrays, tmp_path):
    read(tmp_path, arrays)
    config = json.loads((tmp_path / "config.json").read_text())
    config["label_names"] = {"1": "bee", "0": "ant"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    describe = loading.read(str(tmp_path), "config.init_from").describe
    assert describe["class_names"] == ["ant", "bee"]
