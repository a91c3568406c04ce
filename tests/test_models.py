# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of every published model, and identities any transformer has to keep."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
import tiny
from g2sd_jax import recipes, stages
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.ops import patches
from g2sd_jax.weights import torch_names


def count(tree, *parts):
    """Parameters under the named parts of the top level; of all without any."""
    leaves = jax.tree.leaves([tree[part] for part in parts] if parts else tree)
    return sum(math.prod(leaf.shape) for leaf in leaves)


def shapes(init):
    return jax.eval_shape(init, jax.random.key(0))["params"]


# Parameter counts (method, section 13).


@pytest.mark.parametrize(
    ("size", "plain", "distilled"),
    [
        ("ti16", 5_717_416, 5_910_608),
        ("s16", 22_050_664, 22_436_048),
        ("b16", 86_567_656, 87_337_424),
        ("l16", 304_326_632, 305_352_656),
        ("h14", 632_045_800, 633_328_080),
    ],
)
def test_classifier_parameters(size, plain, distilled):
    for pool in ("cls", "avg"):
        for dist_token, wanted in ((False, plain), (True, distilled)):
            keys = {"model.pool": pool, "model.dist_token": dist_token}
            config = recipes.load(f"finetune:model={size}", keys)
            model = vit.classifier(config.model, config.data.classes)
            assert count(shapes(lambda key, m=model: vit.init(m, key))) == wanted


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
    params = shapes(lambda key: mae.init(student, key))
    assert count(params, "cls_token", "patch_embed", "blocks", "norm") == encoder
    parts = "decoder_embed mask_token decoder_blocks decoder_norm decoder_pred"
    assert count(params, *parts.split()) == dec
    assert count(params, "encoderfeature_pred") == encoder_head
    assert count(params, "decoderfeature_pred") == decoder_head
    whole = mae.autoencoder(config.model)
    params = shapes(lambda key: mae.init(whole, key))
    tables = torch_names.tables(
        {name: np.empty(params[name].shape) for name in ("cls_token", "mask_token")},
        whole.grid,
    )
    assert sum(table.size for table in tables.values()) == frozen
    assert count(params) + frozen == total


@pytest.mark.parametrize(
    ("student", "trained"), [("ti16", 6_633_216), ("s16", 25_242_112)]
)
def test_generic_distillation_trains_only_what_it_uses(student, trained):
    config = recipes.load(f"generic_distill:student={student}")
    stage = stages.build(config)
    params = shapes(lambda key: stage.init(key, {}))
    assert count(params) == trained


# Masking.


@pytest.fixture(scope="module")
def pretrain():
    return tiny.stage("pretrain")


def keep(ids, total):
    """The masking that sees just the patches `ids`, in this order."""
    rest = [i for i in range(total) if i not in ids]
    restore = np.argsort([*ids, *rest])
    removed = np.array([i not in ids for i in range(total)], np.float32)
    one = patches.Masking(jnp.array(ids), jnp.array(restore), jnp.array(removed))
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), one)


def test_masking_equals_slicing(pretrain):
    config, _, variables = pretrain
    model, image = mae.autoencoder(config.model), tiny.images(config)
    rows, columns = model.grid
    patch = model.patch
    top = range(columns)
    masked = tiny.apply(model, variables, image, keep(top, rows * columns))
    strip = model.clone(image_size=(patch, columns * patch))
    alone = tiny.apply(
        strip, variables, image[:, :patch], keep(range(columns), columns)
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
    masking = keep([3, 0, 5], math.prod(model.grid))
    vectors = patches.patchify(image, model.patch)
    other = jnp.where(masking.removed[..., None] > 0, 7.0, vectors)
    other = patches.unpatchify(other, model.patch, model.grid)
    first, second = (tiny.apply(model, variables, x, masking) for x in (image, other))
    np.testing.assert_array_equal(first.pixels, second.pixels)


# How it computes must not change what it computes.


def gradients(model, variables, image, masking):
    def loss(variables):
        return jnp.square(model.apply(variables, image, masking).pixels).mean()

    return jax.jit(jax.value_and_grad(loss))(variables)


def test_scan_and_remat_give_the_same_gradients(pretrain):
    config, _, variables = pretrain
    masking = keep([3, 0, 5], 16)
    model, image = mae.autoencoder(config.model), tiny.images(config)
    plain = gradients(model, variables, image, masking)
    for machine in (dict(remat="full"), dict(remat="dots", scan=False)):
        other = gradients(model.clone(**machine), variables, image, masking)
        for one, two in zip(*map(jax.tree.leaves, (plain, other)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_on_float32_parameters(pretrain):
    config, _, variables = pretrain
    model, image = mae.autoencoder(config.model), tiny.images(config)
    half = model.clone(dtype=jnp.bfloat16)
    params = shapes(lambda key: mae.init(half, key))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    masking = keep([3, 0, 5], 16)
    exact, rough = (tiny.apply(m, variables, image, masking) for m in (model, half))
    assert rough.decoder.dtype == jnp.bfloat16
    assert rough.latent.dtype == rough.pixels.dtype == jnp.float32
    error = np.abs(exact.pixels - rough.pixels).max() / np.abs(exact.pixels).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(("channels", "sides"), [(1, (8, 24)), (4, (12, 8))])
def test_any_image(channels, sides):
    keys = runs.SMALL | dict(image_size=sides, channels=channels, size="custom")
    config = recipes.load("finetune", {"model": keys, "data.classes": 7})
    model, image = vit.classifier(config.model, 7), tiny.images(config)
    rows, columns = sides[0] // 4, sides[1] // 4

    def classify(key):
        variables = vit.init(model, key)
        return variables["params"], model.apply(variables, image)

    params, out = jax.eval_shape(classify, jax.random.key(0))
    assert torch_names.shapes(params)["patch_embed.proj.weight"] == (16, channels, 4, 4)
    assert out.logits.shape == (4, 7)
    assert out.tokens.shape == (4, 1 + rows * columns, 16)
    config = recipes.load("pretrain", {"model": keys | runs.DECODER})
    whole = mae.autoencoder(config.model)
    masking = keep([0, 2], rows * columns)
    guess = lambda key: whole.apply(mae.init(whole, key), image, masking)
    out = jax.eval_shape(guess, jax.random.key(0))
    assert out.pixels.shape == (4, rows * columns, 16 * channels)


# Readouts and drop path.


def classifier(**changes):
    keys = runs.SMALL | dict(size="custom", **changes)
    config = recipes.load("finetune", {"model": keys})
    model = vit.classifier(config.model, 5)
    variables = jax.jit(lambda key: vit.init(model, key))(jax.random.key(0))
    return config, model, tiny.noisy(jax.device_get(variables))


def test_average_pooling_with_a_distillation_token():
    config, model, variables = classifier(pool="avg", dist_token=True)
    out = tiny.apply(model, variables, tiny.images(config))
    params = variables["params"]

    def read(feature, head):
        normed = layers.standardise(feature) * params["fc_norm"]["scale"][None]
        normed = normed + params["fc_norm"]["bias"][None]
        return normed @ params[head]["kernel"] + params[head]["bias"][None]

    patch_tokens = out.tokens[:, 1:-1]
    assert patch_tokens.shape[1] == 16
    logits = read(patch_tokens.mean(axis=1), "head")
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)
    dist_logits = read(out.tokens[:, -1], "head_dist")
    np.testing.assert_allclose(out.dist_logits, dist_logits, atol=1e-5)


def test_readouts():
    out = vit.VitOutput(jnp.ones((1, 2)), jnp.full((1, 2), 3.0), *[None] * 4)
    read = {name: vit.read(out, name)[0, 0] for name in ("cls", "dist", "mean")}
    assert read == {"cls": 1, "dist": 3, "mean": 2}
    with pytest.raises(ValueError, match=r"config\.model\.pool='max' is not known"):
        classifier(pool="max")


def test_drop_path_statistics():
    noise = jax.random.uniform(jax.random.key(0), (4000, 3, 2))
    kept = np.asarray(layers.drop_path(noise, 0.4))  # [depth, 2, B]
    assert kept.shape == (3, 2, 4000)
    for block, rate in enumerate((0.0, 0.2, 0.4)):
        survivors = kept[block] > 0
        np.testing.assert_allclose(kept[block][survivors], 1 / (1 - rate), rtol=1e-6)
        assert abs(survivors.mean() - (1 - rate)) < 0.03
    both = (kept[2] > 0).all(axis=0).mean()  # Two draws per block, independent.
    assert abs(both - 0.36) < 0.03
    assert layers.drop_path(None, 0.4) is None and layers.drop_path(noise, 0.0) is None


def test_dropped_blocks_are_identities_and_inference_drops_nothing():
    config, model, variables = classifier(drop_path=0.5)
    image = tiny.images(config)
    model = model.clone(taps=True)
    dropped = tiny.apply(model, variables, image, jnp.zeros((4, model.depth, 2)))
    np.testing.assert_array_equal(dropped.taps[0], dropped.taps[-1])
    still = tiny.apply(model, variables, image)
    never = tiny.apply(model.clone(drop_path=0.0), variables, image)
    np.testing.assert_array_equal(still.logits, never.logits)
    np.testing.assert_allclose(dropped.taps[0], still.taps[0], atol=1e-6)
    assert np.abs(dropped.taps[-1] - still.taps[-1]).max() > 1e-3
