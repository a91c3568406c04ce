# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The same weights in timm and transformers give the same numbers here."""

import jax
import numpy as np
import pytest
import timm
import torch
import transformers

from g2sd_jax import checkpoint
from g2sd_jax.models import vit
from g2sd_jax.weights import torch_names
from golden_files import agree

SHAPE = dict(depth=2, patch=8, image_size=(32, 24), width=48, heads=3)


def ours(arrays, **changes):
    model = vit.Vit(**SHAPE, classes=7, **changes)
    shapes = jax.eval_shape(lambda key: vit.init(model, key), jax.random.key(0))
    weights = checkpoint.Weights("timm", arrays, {})
    grid = tuple(side // model.patch for side in model.image_size)
    return model, checkpoint.graft(shapes, weights, grid=grid)


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_timm_classifier(pool, rng):
    theirs = timm.models.VisionTransformer(
        img_size=SHAPE["image_size"],
        patch_size=SHAPE["patch"],
        embed_dim=SHAPE["width"],
        depth=SHAPE["depth"],
        num_heads=SHAPE["heads"],
        num_classes=7,
        global_pool={"cls": "token", "avg": "avg"}[pool],
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    model, variables = ours(arrays, pool=pool)
    image = rng.normal(size=(2, 32, 24, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
    agree(jax.jit(model.apply)(variables, image).logits, want, "logits")
    assert torch_names.to_torch(variables["params"]).keys() == arrays.keys()


def test_transformers_block(rng):
    """One whole encoder layer, whose q, k and v they keep apart."""
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=192,
        layer_norm_eps=1e-6,
        image_size=32,
        patch_size=8,
    )
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2))
        want = theirs(pixels).last_hidden_state.numpy()
    arrays = {ours_of(name): value for name, value in state.items()}
    layer = "blocks.0.attn."
    for part in ("weight", "bias"):
        arrays[f"{layer}qkv.{part}"] = np.concatenate(
            [arrays.pop(f"{layer}{each}.{part}") for each in "qkv"]
        )
    model = vit.Vit(48, 1, 3, 8, (32, 32), classes=0)
    shapes = jax.eval_shape(lambda key: vit.init(model, key), jax.random.key(0))
    weights = checkpoint.Weights("transformers", arrays, {})
    variables = checkpoint.graft(shapes, weights, grid=(4, 4))
    agree(jax.jit(model.apply)(variables, image).pooled, want[:, 0], "class token")


THEIRS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layers.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.q_proj", "attn.q"),
    ("attention.k_proj", "attn.k"),
    ("attention.v_proj", "attn.v"),
    ("attention.o_proj", "attn.proj"),
    ("layernorm", "norm"),
)


def ours_of(name):
    for theirs, ours in THEIRS:
        name = name.replace(theirs, ours)
    return name
