# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of the published classifiers, readouts, and any shape of picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
import tiny
from g2sd_jax import recipes
from g2sd_jax.models import layers, mae, vit
from g2sd_jax.weights import torch_names


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
            model = vit.classifier(config.model, 1000)
            assert (
                tiny.parameter_count(
                    tiny.parameter_shapes(lambda key, m=model: vit.init(m, key))
                )
                == wanted
            )


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
    masking = tiny.masking([0, 2], rows * columns)
    guess = lambda key: whole.apply(mae.init(whole, key), image, masking)
    out = jax.eval_shape(guess, jax.random.key(0))
    assert out.pixels.shape == (4, rows * columns, 16 * channels)


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
    read = {name: vit.read_logits(out, name)[0, 0] for name in ("cls", "dist", "mean")}
    assert read == {"cls": 1, "dist": 3, "mean": 2}
    with pytest.raises(ValueError, match=r"config\.model\.pool='max' is not known"):
        classifier(pool="max")


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
