# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch names both ways, and grafting that is strict both ways."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import finished_runs
import tiny
from g2sd_jax.models import mae, upernet, vit
from g2sd_jax.ops import patches, resize
from g2sd_jax.weights import agreement, graft, loading, torch_names


@pytest.fixture(scope="module", params=["pretrain", "generic_distill", "specific_cls"])
def any_stage(request):
    return tiny.stage(request.param)


def test_names_go_round(any_stage):
    params = any_stage[2]["params"]
    arrays = torch_names.to_torch(params)
    names = torch_names.names(params)
    held = jax.tree.leaves(names, is_leaf=lambda node: isinstance(node, tuple))
    flat = [name for each in held for name in each]
    assert sorted(flat) == sorted(set(flat)) == sorted(arrays)
    shapes = torch_names.shapes(jax.eval_shape(lambda: params))
    assert shapes == {name: array.shape for name, array in arrays.items()}
    empty = jax.tree.map(np.zeros_like, params)
    jax.tree.map(
        np.testing.assert_array_equal, torch_names.from_torch(empty, arrays), params
    )


def test_layouts_are_pytorchs(any_stage):
    params = any_stage[2]["params"]
    arrays = torch_names.to_torch(params)
    qkv = params["blocks"]["attn"]["qkv"]["kernel"]  # [depth, in, out]
    np.testing.assert_array_equal(arrays["blocks.1.attn.qkv.weight"], qkv[1].T)
    kernel = params["patch_embed"]["kernel"]  # [row, column, channel, out]
    conv = arrays["patch_embed.proj.weight"]
    np.testing.assert_array_equal(conv[5, 2, 1, 3], kernel[1, 3, 2, 5])


def test_only_an_autoencoder_has_tables():
    arrays = torch_names.to_torch(tiny.stage("pretrain")[2]["params"], (4, 4))
    assert arrays["pos_embed"].shape == arrays["decoder_pos_embed"].shape == (1, 17, 16)
    arrays = torch_names.to_torch(tiny.stage("finetune")[2]["params"])
    assert arrays["pos_embed"].any() and "decoder_pos_embed" not in arrays


def test_leaves_that_are_not_named_are_kept():
    params = tiny.stage("pretrain")[2]["params"]
    new = torch_names.from_torch(params, {"norm.bias": np.full(16, 3.0)})
    np.testing.assert_array_equal(new["norm"]["bias"], 3)
    np.testing.assert_array_equal(new["norm"]["scale"], params["norm"]["scale"])
    with pytest.raises(KeyError, match=r"blocks\.1\.norm1\.bias"):
        torch_names.from_torch(params, {"blocks.0.norm1.bias": np.zeros(16)})


# Grafting.


@pytest.fixture(scope="module")
def finetune():
    return tiny.stage("finetune")


def grafted(variables, arrays, grid=(4, 4), describe=None, **declared):
    weights = loading.Weights("a.safetensors", arrays, describe or {})
    return graft.onto(variables, weights, grid=grid, **declared)


def test_graft_takes_everything(finetune):
    variables = finetune[2]
    arrays = torch_names.to_torch(tiny.noisy(variables)["params"])
    got = grafted(jax.eval_shape(lambda: variables), arrays)
    got = torch_names.to_torch(got["params"])
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)


def test_graft_names_what_does_not_fit(finetune):
    variables = finetune[2]
    arrays = torch_names.to_torch(variables["params"])
    changed = {**arrays, "extra.weight": np.zeros(3), "head.bias": np.zeros(9)}
    del changed["blocks.1.norm1.bias"]
    told = r"a\.safetensors does not fit \(missing: blocks\.1\.norm1\.bias; "
    told += r"not expected: extra\.weight; of another shape: head\.bias is \(9,\), "
    told += r"expected \(5,\)\)\. It holds an encoder of 2 blocks, width 16, no decoder"
    with pytest.raises(ValueError, match=told):
        grafted(variables, changed)
    bare = {n: a for n, a in arrays.items() if not n.startswith("blocks.")}
    with pytest.raises(ValueError, match=r"missing: .* and 20 more"):
        grafted(variables, bare)


def test_declared_entries_are_no_complaint(finetune):
    variables = finetune[2]
    arrays = torch_names.to_torch(tiny.noisy(variables)["params"])
    declared = dict(fresh=(r"head\..*",), dropped=("extra",))
    got = grafted(variables, {**arrays, "extra": np.zeros(2)}, **declared)["params"]
    ours = variables["params"]
    np.testing.assert_array_equal(got["head"]["bias"], ours["head"]["bias"])
    assert not np.array_equal(got["fc_norm"]["bias"], ours["fc_norm"]["bias"])
    # Fresh stays as drawn even if the file's has another shape, or is not there.
    del arrays["head.bias"]
    arrays["head.weight"] = np.zeros((9, 16))
    got = grafted(variables, arrays, **declared)["params"]
    np.testing.assert_array_equal(got["head"]["kernel"], ours["head"]["kernel"])


def test_position_tables_are_resized(finetune):
    variables = finetune[2]
    arrays = torch_names.to_torch(variables["params"])
    rng = np.random.default_rng(0)
    for shape, describe in (((6, 6), {}), ((3, 5), {"grid": [3, 5]})):
        count = 1 + shape[0] * shape[1]
        table = rng.normal(size=(1, count, 16)).astype(np.float32)
        got = grafted(variables, {**arrays, "pos_embed": table}, describe=describe)
        expected = resize.resize_pos_embed(table, shape, (4, 4))
        np.testing.assert_array_equal(got["params"]["pos_embed"], expected)
    with pytest.raises(ValueError, match=r"another shape: pos_embed is \(1, 16, 16\)"):
        grafted(variables, {**arrays, "pos_embed": np.zeros((1, 16, 16))})


def test_constant_tables_are_verified():
    config, _, variables = tiny.stage("pretrain")
    grid = vit.grid(config.model)
    arrays = torch_names.to_torch(variables["params"], grid)
    grafted(variables, arrays, grid)
    transposed = patches.sincos_table(16, grid)[:, :, ::-1]
    for name in ("pos_embed", "decoder_pos_embed"):
        for wrong in (transposed, patches.sincos_table(16, (5, 5))):
            told = rf"{name} \(.*\) is not the sin-cos table of a 4x4 grid"
            with pytest.raises(ValueError, match=told):
                grafted(variables, {**arrays, name: wrong}, grid)
    wrong = {**arrays, "decoder_pos_embed": transposed}
    grafted(variables, wrong, grid, dropped=("decoder_pos_embed",))


def test_another_epsilon_is_refused(finetune):
    config, _, _ = finetune
    weights = loading.Weights("a file", {}, {"model": {"norm_eps": 1e-12}})
    told = r"a file' add 1e-12 to the variance; set --config\.model\.norm_eps=1e-12"
    with pytest.raises(ValueError, match=told):
        agreement.check_heads(weights, config.model, "config.model")
    config = config.copy_and_resolve_references()
    config.model.norm_eps = 1e-12
    agreement.check_heads(weights, config.model, "config.model")


@pytest.mark.parametrize("kind", ["vit", "mae", "segmentor"])
def test_epsilon_reaches_every_norm(kind):
    """The program adds the config's epsilon and no other."""
    stage = dict(vit="finetune", mae="pretrain", segmentor="specific_seg")[kind]
    config, *_ = finished_runs.made(stage, dict(norm_eps=0.125))
    if kind == "vit":
        model = vit.classifier(config.model, 5)
        init = lambda key: vit.init(model, key)
    elif kind == "mae":
        model = mae.autoencoder(config.model)
        init = lambda key: mae.init(model, key)
    else:
        model = upernet.segmentor(config.model, 5).backbone
        image = jnp.zeros((1, *model.image_size, 3))
        init = lambda key: model.init(key, image, False)
    text = str(jax.make_jaxpr(init)(jax.random.key(0)))
    assert "add" in text and "0.125:f32" in text
    assert not re.search(r"9\.99\d*e-07|1e-06", text)


def test_a_hidden_width_is_rounded():
    model = vit.Vit(208, 1, 2, 16, (16, 16), mlp_ratio=4.615)
    shapes = jax.eval_shape(lambda key: vit.init(model, key), jax.random.key(0))
    kernel = shapes["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (1, 208, 960)
