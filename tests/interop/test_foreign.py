# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Foreign vision transformers, made by timm and transformers, give the same features.

Every model is tiny, of odd sizes, and has random numbers in all that is 0 or 1 at
first: LayerScale, registers, biases, tables of positions.
"""

import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers

from g2sd_jax.models import vit
from g2sd_jax.weights import architecture, graft, loading
from golden_files import agree

WIDTH, HEADS = 48, 3
TIMM = dict(embed_dim=WIDTH, depth=2, num_heads=HEADS, num_classes=0)
HUGGING = dict(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=100,
)


def moved(model):
    """No bias is zero, no scale one, no two tokens alike."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def pictures(size, seed=0):
    image = np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)
    return image, torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def features(path, image, heads=None, activation=None):
    """The outputs of our module for the pictures, the table of positions resized."""
    weights = loading.read(str(path), "config.teacher.checkpoint")
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    assert not shape.unknown
    shape = shape._replace(heads=heads or shape.heads)
    if activation:
        variant = shape.variant._replace(activation=activation)
        shape = shape._replace(variant=variant)
    model = architecture.encoder(shape, image.shape[1:3])
    shapes = jax.eval_shape(lambda key: vit.init(model, key), jax.random.key(0))
    variables = graft.onto(shapes, weights, grid=model.grid)
    return jax.jit(model.apply)(variables, image), shape


def timm_directory(path, model, architecture, **args):
    """A directory as timm writes one."""
    given = {k: v for k, v in args.items() if k != "num_classes"}
    cfg = dict(input_size=[3, 224, 224], mean=[0.5] * 3, std=[0.25] * 3)
    config = dict(architecture=architecture, model_args=given, pretrained_cfg=cfg)
    config |= dict(num_classes=0, num_features=WIDTH)
    (path / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path / "model.safetensors")


class Case(NamedTuple):
    """An architecture of timm."""

    entry: str
    patch: int
    args: Mapping[str, Any] = types.MappingProxyType({})
    activation: str = ""  # Of a bare state dict, which does not tell it.


OF_TIMM = {
    "DINOv2": Case("vit_small_patch14_dinov2", 14),
    "DINOv2 with registers": Case("vit_small_patch14_reg4_dinov2", 14),
    "DINOv2 giant": Case("vit_giant_patch14_dinov2", 14),
    "DeiT III": Case("deit3_small_patch16_224", 16),
    "CLIP, OpenAI": Case(
        "vit_base_patch16_clip_quickgelu_224", 16, activation="quick_gelu"
    ),
    "CLIP, LAION": Case("vit_base_patch16_clip_224", 16, activation="gelu"),
    "SigLIP": Case("vit_base_patch16_siglip_224", 16, activation="gelu"),
    "SigLIP 2": Case("vit_so400m_patch16_siglip_256", 16, activation="gelu_tanh"),
    "SigLIP, mean": Case("vit_base_patch16_siglip_gap_224", 16, activation="gelu"),
    "EVA-02 tiny": Case("eva02_tiny_patch14_224", 14),
    "EVA-02 base": Case("eva02_base_patch14_224", 14),
    "EVA-02 CLIP": Case("eva02_base_patch16_clip_224", 16),
    "DINOv3": Case("vit_small_patch16_dinov3", 16, dict(dynamic_img_size=False)),
    "DINOv3 with biases": Case("vit_small_patch16_dinov3_qkvb", 16),
    "DINOv3 plus": Case("vit_small_plus_patch16_dinov3", 16),
    "DINOv3 plus with biases": Case("vit_small_plus_patch16_dinov3_qkvb", 16),
}


def made_by_timm(case, size):
    args = dict(TIMM, **case.args)
    model = moved(timm.create_model(case.entry, img_size=size, **args))
    return model, dict(args, img_size=list(size))


@pytest.mark.parametrize("stored", ["directory", "state dict"])
@pytest.mark.parametrize("family", OF_TIMM)
def test_timm(family, stored, tmp_path):
    case = OF_TIMM[family]
    size = (3 * case.patch, 3 * case.patch)
    if stored == "directory":
        size = (2 * case.patch, 5 * case.patch)
    theirs, args = made_by_timm(case, size)
    heads = activation = None
    path = tmp_path
    if stored == "directory":
        timm_directory(path, theirs, case.entry, **args)
    else:
        path, heads, activation = tmp_path / "a.pth", HEADS, case.activation
        torch.save(theirs.state_dict(), path)
    image, pixels = pictures(size)
    with torch.no_grad():
        tokens = theirs.forward_features(pixels)
        pooled = theirs.forward_head(tokens, pre_logits=True)
    mine, shape = features(path, image, heads, activation)
    got = mine.tokens if shape.pool == "avg" else mine.normed
    agree(got, tokens, "tokens", 1e-5)
    if stored == "directory":  # A state dict does not say what its head reads.
        agree(mine.pooled, pooled, "pooled", 1e-5)


def test_timm_of_flexible_size(tmp_path):
    """SigLIP 2 as timm's naflexvit: a linear layer embeds the pixels of a patch."""
    entry, args = "naflexvit_base_patch16_siglip", dict(pos_embed_grid_size=(3, 3))
    theirs = moved(timm.create_model(entry, **TIMM, **args))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    image, pixels = pictures((48, 48))
    with torch.no_grad():
        tokens = theirs.forward_features(pixels)
        pooled = theirs.forward_head(tokens, pre_logits=True)
    mine, _ = features(tmp_path / "a.pth", image, HEADS, "gelu_tanh")
    agree(mine.normed, tokens, "tokens", 1e-5)
    agree(mine.pooled, pooled, "pooled", 1e-5)


OF_TRANSFORMERS = {
    "DINOv2": ("Dinov2", dict(patch_size=14, image_size=42, mlp_ratio=2)),
    "DINOv2 with registers": (
        "Dinov2WithRegisters",
        dict(patch_size=14, image_size=42, mlp_ratio=2, num_register_tokens=3),
    ),
    "DINOv2 giant": (
        "Dinov2",
        dict(patch_size=14, image_size=42, mlp_ratio=2, use_swiglu_ffn=True),
    ),
    "DINOv3": ("DINOv3ViT", dict(patch_size=16, num_register_tokens=4)),
    "DINOv3 plus": (
        "DINOv3ViT",
        dict(
            patch_size=16,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
            rope_theta=50.0,
        ),
    ),
    "CLIP, OpenAI": ("CLIPVision", dict(patch_size=16, image_size=48)),
    "CLIP, LAION": (
        "CLIPVision",
        dict(patch_size=16, image_size=48, hidden_act="gelu"),
    ),
    "SigLIP": ("SiglipVision", dict(patch_size=16, image_size=48)),
    "SigLIP, mean": (
        "SiglipVision",
        dict(patch_size=16, image_size=48, vision_use_head=False),
    ),
    "SigLIP 2": ("Siglip2Vision", dict(patch_size=8, num_patches=9)),
}


def made_by_transformers(family):
    name, changes = OF_TRANSFORMERS[family]
    config = getattr(transformers, f"{name}Config")(**(HUGGING | changes))
    return moved(getattr(transformers, f"{name}Model")(config))


def answer(theirs, image, pixels, patch):
    """Their tokens after the last norm, and what they pool."""
    flexible = isinstance(theirs, transformers.Siglip2VisionModel)
    with torch.no_grad():
        if flexible:  # Pictures are sequences of patches: row, column, channel.
            batch, height, width, _ = image.shape
            rows, columns = height // patch, width // patch
            cut = image.reshape(batch, rows, patch, columns, patch, 3)
            cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
            out = theirs(
                pixel_values=torch.from_numpy(cut.copy()),
                pixel_attention_mask=torch.ones(batch, rows * columns),
                spatial_shapes=torch.tensor([[rows, columns]] * batch),
            )
        elif "interpolate" in str(inspect.signature(theirs.forward)):
            out = theirs(pixels, interpolate_pos_encoding=True)
        else:
            out = theirs(pixels)
    return out.last_hidden_state, getattr(out, "pooler_output", None)


@pytest.mark.parametrize("resized", [False, True])
@pytest.mark.parametrize("family", OF_TRANSFORMERS)
def test_transformers(family, resized, tmp_path):
    """Resized: the table of positions fits another, oblong grid, as they do it."""
    theirs = made_by_transformers(family)
    theirs.save_pretrained(tmp_path)
    patch = theirs.config.patch_size
    size = (2 * patch, 5 * patch) if resized else (3 * patch, 3 * patch)
    image, pixels = pictures(size)
    tokens, pooled = answer(theirs, image, pixels, patch)
    mine, _ = features(tmp_path, image)
    got = mine.normed
    if "CLIP" in family and "Sig" not in family:  # They norm the class token alone.
        got = mine.tokens
    agree(got, tokens, "tokens", 1e-5)
    if pooled is not None:
        agree(mine.pooled, pooled, "pooled", 1e-5)


@pytest.mark.parametrize("family", ["DINOv2 giant", "DINOv3", "SigLIP"])
def test_transformers_state_dict(family, tmp_path):
    """The names that modules have, without a config.json."""
    theirs = made_by_transformers(family)
    path = tmp_path / "model.pth"
    torch.save(theirs.state_dict(), path)
    patch = theirs.config.patch_size
    image, pixels = pictures((3 * patch, 3 * patch))
    tokens, _ = answer(theirs, image, pixels, patch)
    agree(features(path, image, HEADS)[0].normed, tokens, "tokens", 1e-5)


def test_the_vision_half_of_a_model_of_pictures_and_text(tmp_path):
    vision = dict(HUGGING, patch_size=16, image_size=48)
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    text |= dict(intermediate_size=16, vocab_size=50)
    for name in ("CLIP", "Siglip"):
        config = getattr(transformers, f"{name}Config")(
            text_config=text, vision_config=vision
        )
        theirs = moved(getattr(transformers, f"{name}Model")(config))
        theirs.save_pretrained(tmp_path / name)
        image, pixels = pictures((48, 48))
        _, pooled = answer(theirs.vision_model, image, pixels, 16)
        mine, _ = features(tmp_path / name, image)
        agree(mine.pooled, pooled, "pooled", 1e-5)


# The original repositories: their names, written by hand onto models of the libraries.


def renamed(state, *rules):
    new = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        new[name] = value
    return new


def dinov2_original(theirs):
    state = renamed(
        theirs.state_dict(),
        (r"^reg_token", "register_tokens"),
        (r"^blocks\.(\d+)\.", r"blocks.0.\1."),
    )
    mlp = theirs.blocks[0].mlp
    if mlp.fc1.out_features == 2 * mlp.fc2.in_features:
        state = renamed(state, (r"\.fc1\.", ".w12."), (r"\.fc2\.", ".w3."))
    return state | dict(mask_token=torch.zeros(1, WIDTH))


def dinov3_original(theirs):
    state = renamed(
        theirs.state_dict(),
        (r"^reg_token", "storage_tokens"),
        (r"\.gamma_(\d)$", r".ls\1.gamma"),
        (r"\.fc1_g\.", ".w1."),
        (r"\.fc1_x\.", ".w2."),
    )
    if "blocks.0.mlp.w1.weight" in state:
        state = renamed(state, (r"\.mlp\.fc2\.", ".mlp.w3."))
    for index in range(2):
        prefix = f"blocks.{index}.attn."
        biases = [state.pop(f"{prefix}{each}_bias") for each in "qv"]
        bias = torch.cat([biases[0], torch.full((WIDTH,), 3.0), biases[1]])
        mask = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
        state |= {f"{prefix}qkv.bias": bias, f"{prefix}qkv.bias_mask": mask}
        state.pop(f"{prefix}k_bias", None)
    quarter = WIDTH // HEADS // 4
    periods = 100.0 ** (torch.arange(quarter) / quarter)
    return state | {
        "rope_embed.periods": periods,
        "mask_token": torch.zeros(1, WIDTH),
    }


def eva02_original(theirs):
    state = renamed(
        theirs.state_dict(),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
        (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
        (r"\.mlp\.fc2\.", ".mlp.w3."),
        (r"\.attn\.norm\.", ".attn.inner_attn_ln."),
        (r"\.attn\.(q|v)_proj\.bias", r".attn.\1_bias"),
    )
    rope = torch.zeros(9, WIDTH // HEADS)
    return state | {"rope.freqs_cos": rope, "rope.freqs_sin": rope}


def clip_original(theirs):
    state = renamed(
        theirs.state_dict(),
        (r"^cls_token", "class_embedding"),
        (r"^pos_embed", "positional_embedding"),
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^", "visual."),
    )
    for name in ("class_embedding", "positional_embedding"):
        state[f"visual.{name}"] = state[f"visual.{name}"].reshape(-1, WIDTH).squeeze(0)
    text = {
        "visual.proj": torch.zeros(WIDTH, 5),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
        "token_embedding.weight": torch.zeros(9, 8),
        "positional_embedding": torch.zeros(7, 8),
        "ln_final.weight": torch.zeros(8),
        "text_projection": torch.zeros(8, 5),
        "logit_scale": torch.zeros(()),
    }
    return text | state


ORIGINALS = {
    "DINOv2": dinov2_original,
    "DINOv2 giant": dinov2_original,
    "DINOv3 with biases": dinov3_original,
    "DINOv3 plus with biases": dinov3_original,
    "EVA-02 tiny": eva02_original,
    "EVA-02 base": eva02_original,
    "EVA-02 CLIP": eva02_original,
    "CLIP, OpenAI": clip_original,
}


@pytest.mark.parametrize("family", ORIGINALS)
def test_original_repositories(family, tmp_path):
    case = OF_TIMM[family]
    size = (3 * case.patch, 3 * case.patch)
    theirs, _ = made_by_timm(case, size)
    path = tmp_path / "original.pth"
    state = ORIGINALS[family](theirs)
    torch.save({"model": {name: value.clone() for name, value in state.items()}}, path)
    image, pixels = pictures(size)
    with torch.no_grad():
        tokens = theirs.forward_features(pixels)
    mine, shape = features(path, image, HEADS, case.activation)
    got = mine.tokens if shape.pool == "avg" else mine.normed
    agree(got, tokens, "tokens", 1e-5)


REFUSED = {
    "norms of queries and keys": (
        "vit_small_patch14_dinov2",
        dict(qk_norm=True),
        "qk_norm=True",
    ),
    "another activation": (
        "vit_base_patch16_clip_224",
        dict(act_layer="relu"),
        "act_layer='relu'",
    ),
    "other rotary positions": (
        "eva02_tiny_patch14_224",
        dict(rope_grid_indexing="xy"),
        "rope_grid_indexing='xy'",
    ),
    "norms after the branches": (
        "eva02_tiny_patch14_224",
        dict(use_post_norm=True),
        "use_post_norm=True",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_is_refused_by_the_argument(what, tmp_path):
    entry, args, told = REFUSED[what]
    theirs, made = made_by_timm(Case(entry, 14), (28, 28))
    timm_directory(tmp_path, theirs, entry, **made, **args)
    with pytest.raises(ValueError, match=re.escape(told)):
        loading.read(str(tmp_path), "config.teacher.checkpoint")


def test_what_is_not_computed_is_refused_by_the_tensor(tmp_path):
    theirs, _ = made_by_timm(OF_TIMM["DINOv2"], (28, 28))
    for name, part in (
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        ("blocks.1.attn.relative_position_bias_table", "relative positions"),
        ("cls_norm.weight", "a last norm of the class token apart"),
    ):
        path = tmp_path / "a.pth"
        torch.save(theirs.state_dict() | {name: torch.ones(4)}, path)
        with pytest.raises(ValueError, match=f"{part} .{re.escape(name)}"):
            loading.read(str(path), "config.teacher.checkpoint")


@pytest.mark.parametrize(
    "family, changes, told",
    [
        ("DINOv3", dict(key_bias=True), "key_bias=True"),
        ("SigLIP", dict(hidden_act="relu"), "hidden_act='relu'"),
        ("DINOv2", dict(qkv_bias=False), "qkv_bias=False"),
    ],
)
def test_what_transformers_say_is_refused_by_the_key(family, changes, told, tmp_path):
    theirs = made_by_transformers(family)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=re.escape(told)):
        loading.read(str(tmp_path), "config.teacher.checkpoint")
