# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of the published autoencoders, and identities of masking and computing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from g2sd_jax import recipes, stages
from g2sd_jax.models import mae, vit
from g2sd_jax.ops import patches
from g2sd_jax.weights import torch_names

MAES = """
ti16     dec64d4b    5486592    262400   50432    5799424   738816  295936
ti16     dec128d4b   5486592    917248   63040    6466880   738816  328704
ti16_12h dec128d4b   5486592    917248   63040    6466880   738816  328704
s16      dec128d2b  21590016    545280  100864   22236160   886272  328704
s16      dec128d4b  21590016    941824  100864   22632704   886272  328704
s16      dec128d8b  21590016   1734912  100864   23425792   886272  328704
s16      dec192d4b  21590016   2002176  113472   23705664   886272  361472
s16      dec256d2b  21590016   1876224  126080   23592320   886272  394240
s16      dec256d4b  21590016   3455744  126080   25171840   886272  394240
s16      dec256d8b  21590016   6614784  126080   28330880   886272  394240
s16      dec512d2b  21590016   6897408  176512   28663936   886272  525312
s16      dec512d4b  21590016  13202176  176512   34968704   886272  525312
s16      dec512d8b  21590016  25811712  176512   47578240   886272  525312
b16      dec256d4b  85647360   3554048  201728   89403136  1181184  394240
b16      dec512d4b  85647360  13398784  252160   99298304  1181184  525312
b16      dec512d8b  85647360  26008320  252160  111907840  1181184  525312
l16      dec512d8b 303099904  26139392  302592  329541888  1377792  525312
h14      dec512d8b 630435840  26178124  460544  657074508  1574400  525312
"""
TEACHER = dict(encoder_feature_width=768, feature_width=512)  # ViT-B, dec512d8b.


@pytest.mark.parametrize("row", MAES.split("\n")[1:-1])
def test_autoencoder_parameters(row):
    size, decoder, *numbers = row.split()
    encoder, dec, frozen, total, encoder_head, decoder_head = map(int, numbers)
    config = recipes.load(f"pretrain:model={size},decoder={decoder}")
    student = mae.autoencoder(config.model, **TEACHER)
    params = tiny.parameter_shapes(lambda key: mae.init(student, key))
    assert (
        tiny.parameter_count(params, "cls_token", "patch_embed", "blocks", "norm")
        == encoder
    )
    parts = "decoder_embed mask_token decoder_blocks decoder_norm decoder_pred"
    assert tiny.parameter_count(params, *parts.split()) == dec
    assert tiny.parameter_count(params, "encoderfeature_pred") == encoder_head
    assert tiny.parameter_count(params, "decoderfeature_pred") == decoder_head
    whole = mae.autoencoder(config.model)
    params = tiny.parameter_shapes(lambda key: mae.init(whole, key))
    tables = torch_names.tables(
        {name: np.empty(params[name].shape) for name in ("cls_token", "mask_token")},
        whole.grid,
    )
    assert sum(table.size for table in tables.values()) == frozen
    assert tiny.parameter_count(params) + frozen == total


@pytest.mark.parametrize(
    ("student", "trained"), [("ti16", 6_633_216), ("s16", 25_242_112)]
)
def test_generic_distillation_trains_only_what_it_uses(student, trained):
    config = recipes.load(f"generic_distill:student={student}")
    stage = stages.build(config)
    params = tiny.parameter_shapes(stage.init)
    assert tiny.parameter_count(params) == trained


@pytest.fixture(scope="module")
def pretrain():
    return tiny.stage("pretrain")


def test_masking_equals_slicing(pretrain):
    config, _, variables = pretrain
    model, image = mae.autoencoder(config.model), tiny.images(config)
    rows, columns = model.grid
    patch = model.patch
    top = range(columns)
    masked = tiny.apply(model, variables, image, tiny.masking(top, rows * columns))
    strip = model.clone(image_size=(patch, columns * patch))
    alone = tiny.apply(
        strip, variables, image[:, :patch], tiny.masking(range(columns), columns)
    )
    np.testing.assert_allclose(masked.latent, alone.latent, atol=1e-5)


def test_everything_seen_is_a_vit_with_that_table(pretrain):
    config, _, variables = pretrain
    model, image = mae.autoencoder(config.model), tiny.images(config)
    noise = jax.random.uniform(jax.random.key(0), (4, math.prod(model.grid)))
    masking = patches.mask(noise, 0.0)
    out = tiny.apply(model, variables, image, masking)
    encoder = vit.Vit(
        **vit.size(config.model)._asdict(),
        image_size=model.image_size,
        mlp_ratio=model.mlp_ratio,
    )
    table = patches.sincos_table(model.width, model.grid)
    params = {k: variables["params"][k] for k in ("cls_token", "patch_embed", "blocks")}
    params |= {"pos_embed": table, "norm": variables["params"]["norm"]}
    seen = tiny.apply(encoder, {"params": params}, image)
    drawn = out.prenorm[:, 1:]
    restored = jnp.take_along_axis(drawn, masking.ids_restore[..., None], axis=1)
    np.testing.assert_allclose(restored, seen.tokens[:, 1:], atol=1e-5)
    np.testing.assert_allclose(out.latent[:, 0], seen.pooled, atol=1e-5)


def test_hidden_pixels_change_nothing(pretrain):
    config, _, variables = pretrain
    model, image = mae.autoencoder(config.model), tiny.images(config)
    masking = tiny.masking([3, 0, 5], math.prod(model.grid))
    vectors = patches.patchify(image, model.patch)
    other = jnp.where(masking.removed[..., None] > 0, 7.0, vectors)
    other = patches.unpatchify(other, model.patch, model.grid)
    first, second = (tiny.apply(model, variables, x, masking) for x in (image, other))
    np.testing.assert_array_equal(first.pixels, second.pixels)


def gradients(model, variables, image, masking):
    def loss(variables):
        return jnp.square(model.apply(variables, image, masking).pixels).mean()

    return jax.jit(jax.value_and_grad(loss))(variables)


def test_scan_and_remat_give_the_same_gradients(pretrain):
    config, _, variables = pretrain
    masking = tiny.masking([3, 0, 5], 16)
    model, image = mae.autoencoder(config.model), tiny.images(config)
    plain = gradients(model, variables, image, masking)
    for machine in (
        dict(remat="full"),
        dict(remat="dots", scan=False),
        dict(remat="products", attention="loop"),
    ):
        other = gradients(model.clone(**machine), variables, image, masking)
        for one, two in zip(*map(jax.tree.leaves, (plain, other)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_on_float32_parameters(pretrain):
    config, _, variables = pretrain
    model, image = mae.autoencoder(config.model), tiny.images(config)
    half = model.clone(dtype=jnp.bfloat16)
    params = tiny.parameter_shapes(lambda key: mae.init(half, key))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    masking = tiny.masking([3, 0, 5], 16)
    exact, rough = (tiny.apply(m, variables, image, masking) for m in (model, half))
    assert rough.decoder.dtype == jnp.bfloat16
    assert rough.latent.dtype == rough.pixels.dtype == jnp.float32
    error = np.abs(exact.pixels - rough.pixels).max() / np.abs(exact.pixels).max()
    assert 0 < error < 0.05
