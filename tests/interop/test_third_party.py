# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models made by timm and transformers load here and give the same numbers."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers
from transformers.models.vit_mae import modeling_vit_mae

import runs
from g2sd_jax import stages
from g2sd_jax.losses import masked
from g2sd_jax.models import mae, vit
from g2sd_jax.ops import patches
from g2sd_jax.weights import graft, loading
from golden_files import agree

SHAPE = dict(depth=2, patch=8, image_size=(32, 32), width=48, heads=3)
HUGGING = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=192,
    layer_norm_eps=1e-6,  # Theirs is 1e-12 by default.
    image_size=32,
    patch_size=8,
    num_labels=7,
)


def moved(model):
    """No bias is zero, no scale one, no two tokens alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def pictures(rng):
    image = rng.normal(size=(2, *SHAPE["image_size"], 3)).astype(np.float32)
    return image, torch.from_numpy(image.transpose(0, 3, 1, 2))


def load(path, init, **declared):
    grid = tuple(side // SHAPE["patch"] for side in SHAPE["image_size"])
    weights = loading.read(str(path), "config.init_from")
    shapes = jax.eval_shape(init, jax.random.key(0))
    return weights, graft.onto(shapes, weights, grid=grid, **declared)


def answers(path, image, readout="cls", **changes):
    """Logits of the file's weights in our classifier."""
    model = vit.Vit(**(SHAPE | changes), classes=7)
    _, variables = load(path, lambda key: vit.init(model, key))
    return vit.read_logits(jax.jit(model.apply)(variables, image), readout)


@pytest.mark.parametrize("ending", ["pth", "safetensors", "state_dict.pth"])
@pytest.mark.parametrize("pool", ["cls", "avg", "distilled"])
def test_timm_classifier(pool, ending, rng, tmp_path):
    made = dict(
        img_size=SHAPE["image_size"],
        patch_size=SHAPE["patch"],
        embed_dim=SHAPE["width"],
        depth=SHAPE["depth"],
        num_heads=SHAPE["heads"],
        num_classes=7,
    )
    changes = dict(pool=pool)
    if pool == "distilled":
        theirs = timm.models.VisionTransformerDistilled(**made)
        changes = dict(pool="cls", dist_token=True, readout="mean")
    else:
        pooled = {"cls": "token", "avg": "avg"}[pool]
        theirs = timm.models.VisionTransformer(**made, global_pool=pooled)
    state = moved(theirs).state_dict()
    path = tmp_path / f"vit.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(state, path)
    elif ending == "pth":
        torch.save(state, path)
    else:  # As its training script saves one, from several processes.
        state = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "arch": "vit", "state_dict": state}, path)
    image, pixels = pictures(rng)
    with torch.no_grad():
        want = theirs(pixels)
    agree(answers(path, image, **changes), want, "logits", 1e-5)


def timm_directory(path, state, architecture="vit_base_patch16_224", **args):
    """A directory as timm writes one, with these model_args."""
    made = dict(img_size=[32, 32], embed_dim=48, depth=2, num_heads=3, patch_size=8)
    made = {k: v for k, v in (made | args).items() if v != "left out"}
    pictures = dict(input_size=[3, 32, 32], mean=[0.5] * 3, std=[0.5] * 3)
    config = dict(architecture=architecture, model_args=made, pretrained_cfg=pictures)
    config |= dict(num_classes=7, num_features=48)
    (path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(state, path / "model.safetensors")


TIMM = {  # case -> (model_args beside the shape, the model here)
    "avg": (dict(global_pool="avg"), dict(pool="avg")),
    "avg with fc_norm": (dict(global_pool="avg", fc_norm=True), dict(pool="avg")),
    "token with fc_norm": (dict(fc_norm=True), dict(pool="cls")),
    "positions of patches alone": (dict(no_embed_class=True), dict(pool="cls")),
    "mean, positions of patches": (
        dict(no_embed_class=True, global_pool="avg"),
        dict(pool="avg"),
    ),
    "sides of a patch": (dict(patch_size=[8, 8]), dict(pool="cls")),
    "named layers": (dict(act_layer="gelu", norm_layer="layernorm"), dict(pool="cls")),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_arguments_are_obeyed(case, rng, tmp_path):
    args, changes = TIMM[case]
    made = dict(img_size=(32, 32), embed_dim=48, depth=2, num_heads=3, patch_size=8)
    theirs = timm.models.VisionTransformer(**(made | args), num_classes=7)
    timm_directory(tmp_path, moved(theirs).state_dict(), **args)
    image, pixels = pictures(rng)
    with torch.no_grad():
        want = theirs(pixels)
    agree(answers(tmp_path, image, **changes), want, "logits", 1e-5)
    built = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        agree(built(pixels), want, "timm's own", 1e-6)


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_timm_pooling_that_is_not_computed_is_refused(pool, tmp_path):
    theirs = timm.models.VisionTransformer(
        img_size=(32, 32),
        embed_dim=48,
        depth=2,
        num_heads=3,
        patch_size=8,
        num_classes=7,
        global_pool=pool,
    )
    timm_directory(tmp_path, theirs.state_dict(), global_pool=pool)
    with pytest.raises(ValueError, match=f"says global_pool='{pool}'"):
        loading.read(str(tmp_path), "config.init_from")


FAMILIES = {
    "ViTForImageClassification": (transformers.ViTConfig, dict(pool="cls")),
    "DeiTForImageClassificationWithTeacher": (
        transformers.DeiTConfig,
        dict(pool="cls", dist_token=True, readout="mean"),
    ),
}


@pytest.mark.parametrize("stored", ["directory", "sharded", "state dict"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_classifier(family, stored, rng, tmp_path):
    config, changes = FAMILIES[family]
    theirs = moved(getattr(transformers, family)(config(**HUGGING)))
    path = tmp_path
    if stored == "directory":
        theirs.save_pretrained(path)
    elif stored == "sharded":
        theirs.save_pretrained(path, max_shard_size="100KB")
        assert len(list(path.glob("*.safetensors"))) > 1
    else:  # The names that its modules have in version 5.
        path = tmp_path / "model.pth"
        torch.save(theirs.state_dict(), path)
    image, pixels = pictures(rng)
    with torch.no_grad():
        want = theirs(pixels).logits
    agree(answers(path, image, **changes), want, "logits", 1e-5)


DECODER = dict(dec_width=32, dec_depth=2, dec_heads=2)


def their_table(width):
    """Their sin-cos table; for ViTMAE they put the column's half first."""
    table = modeling_vit_mae.build_2d_sinusoidal_position_embedding(
        4, 4, width, cls_token=True
    )
    return torch.cat(table.chunk(2, dim=-1)[::-1], dim=-1)[None]


@pytest.mark.parametrize("target", ["normalised", "raw"])
def test_transformers_autoencoder(target, rng, tmp_path):
    """Their reconstruction loss is ours, for the same noise."""
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **HUGGING,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=128,
            norm_pix_loss=target == "normalised",
        )
    )
    with torch.no_grad():  # Which version 5.23 leaves zero in a model made afresh.
        theirs.vit.embeddings.position_embeddings.copy_(their_table(48))
        theirs.decoder.decoder_pos_embed.copy_(their_table(32))
    moved(theirs).save_pretrained(tmp_path)
    image, pixels = pictures(rng)
    noise = rng.random((2, 16), np.float32)
    with torch.no_grad():
        out = theirs(pixels, noise=torch.from_numpy(noise))
    model = mae.Mae(**SHAPE, **DECODER)
    weights, variables = load(tmp_path, lambda key: mae.init(model, key))
    assert weights.describe["target"] == target
    assert weights.describe["decoder"]["heads"] == 2
    masking = patches.mask(noise, 0.75)
    mine = jax.jit(model.apply)(variables, image, masking)
    agree(mine.pixels, out.logits, "pixels", 1e-5)
    truth = patches.patchify(image, model.patch)
    truth = masked.normalise_patches(truth) if target == "normalised" else truth
    loss = masked.masked_pixel_loss(mine.pixels, truth, masking.removed)
    np.testing.assert_allclose(loss, out.loss, rtol=1e-5)


@pytest.mark.parametrize("family", ["ViTModel", "ViTMAEModel"])
def test_transformers_bare_model_starts_fine_tuning(family, tmp_path):
    config = getattr(transformers, family.replace("Model", "Config"))(**HUGGING)
    theirs = getattr(transformers, family)(config)
    moved(theirs).save_pretrained(tmp_path)
    recipe = runs.small("finetune", init_from=str(tmp_path))
    with recipe.unlocked():
        recipe.model.update(
            width=48, heads=3, patch=8, image_size=(32, 32), mlp_ratio=4.0
        )
    stage = stages.build(recipe)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    got = stage.warm_start(shapes)["params"]["blocks"]["mlp"]["fc2"]["kernel"]
    want = theirs.layers[1].mlp.fc2.weight.detach().numpy()
    np.testing.assert_array_equal(got[1].T, want)
    with recipe.unlocked():
        recipe.model.heads = 4
    with pytest.raises(ValueError, match=r"set --config\.model\.heads=3"):
        stages.build(recipe).warm_start(shapes)


def test_models_that_compute_something_else_are_refused(tmp_path):
    small = dict(HUGGING, num_hidden_layers=1)
    for config, told in (
        (transformers.ViTConfig(**small, hidden_act="gelu_new"), "hidden_act='gelu_n"),
        (transformers.ViTConfig(**small, qkv_bias=False), "qkv_bias=False"),
        (transformers.BeitConfig(**small), "of type 'beit'"),
    ):
        folder = tmp_path / config.model_type
        transformers.AutoModelForImageClassification.from_config(
            config
        ).save_pretrained(folder)
        with pytest.raises(ValueError, match=told):
            loading.read(str(folder), "config.init_from")


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_their_epsilon_is_used(eps, rng, tmp_path):
    config = transformers.ViTConfig(**dict(HUGGING, layer_norm_eps=eps))
    theirs = moved(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    image, pixels = pictures(rng)
    with torch.no_grad():
        want = theirs(pixels).logits
    weights = loading.read(str(tmp_path), "config.init_from")
    assert weights.describe["model"]["norm_eps"] == eps
    got = answers(tmp_path, image, pool="cls", norm_eps=eps)
    agree(got, want, "logits", 1e-5)


def test_a_hidden_width_is_rounded(rng, tmp_path):
    config = dict(HUGGING, hidden_size=39, intermediate_size=180)  # 39 x 4.615
    theirs = moved(
        transformers.ViTForImageClassification(transformers.ViTConfig(**config))
    )
    theirs.save_pretrained(tmp_path)
    image, pixels = pictures(rng)
    with torch.no_grad():
        want = theirs(pixels).logits
    got = answers(tmp_path, image, pool="cls", width=39, mlp_ratio=4.615)
    agree(got, want, "logits", 1e-5)
