# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The config.json that transformers writes beside a foreign vision transformer."""

from collections.abc import Mapping
from typing import NamedTuple

from g2sd_jax.weights import foreign_names

ACTIVATIONS = {  # Of transformers -> here.
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
# What transformers resizes learned positions by; SigLIP 2 has a rule of its own.
NAFLEX = dict(resize="bilinear_antialias")


class Model(NamedTuple):
    """What the config.json of one model_type leaves out, and what it must not say."""

    defaults: Mapping[str, object]
    variant: Mapping[str, object] = {}
    pool: str = "cls"
    # Key of config.json -> the only value that is computed here.
    refused: Mapping[str, object] = {}


VISION = dict(image_size=224, patch_size=16, num_channels=3)
BASE = dict(VISION, hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
DINOV2 = dict(BASE, layer_norm_eps=1e-6, hidden_act="gelu")
DINOV3 = dict(
    VISION,
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    layer_norm_eps=1e-5,
    hidden_act="gelu",
    rope_theta=100.0,
)
CLIP = dict(BASE, patch_size=32, layer_norm_eps=1e-5, hidden_act="quick_gelu")
SIGLIP = dict(BASE, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
BY_TYPE = {
    "dinov2": Model(DINOV2, refused=dict(qkv_bias=True)),
    "dinov2_with_registers": Model(
        DINOV2, dict(resize="bicubic_antialias"), refused=dict(qkv_bias=True)
    ),
    "dinov3_vit": Model(
        DINOV3,
        foreign_names.DINOV3,
        refused=dict(query_bias=True, key_bias=False, value_bias=True, proj_bias=True)
        | dict(mlp_bias=True),
    ),
    "clip_vision_model": Model(CLIP),
    "siglip_vision_model": Model(SIGLIP, pool="attention"),
    "siglip2_vision_model": Model(SIGLIP, NAFLEX, pool="attention"),
}
# Models of pictures and text, whose vision_config is one of the above.
OF_BOTH = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
}


def is_foreign(config: Mapping) -> bool:
    """Whether a config.json is that of a foreign encoder which can be read."""
    return config.get("model_type") in {*BY_TYPE, *OF_BOTH}


def describe(config: Mapping, preprocessing: Mapping, source: str) -> dict:
    """Describes the encoder of config.json and preprocessor_config.json.

    Raises:
        ValueError: the model computes something that no model here does.
    """
    model_type = config["model_type"]
    if model_type in OF_BOTH:
        model_type = OF_BOTH[model_type]
        config = config.get("vision_config") or {}
    model = BY_TYPE[model_type]
    for key, computed in model.refused.items():
        if config.get(key, computed) != computed:
            raise _refusal(source, key, config[key], computed)
    settings = {**model.defaults, **config}
    variant = dict(model.variant)
    activation = settings["hidden_act"]
    if activation not in ACTIVATIONS:
        raise _refusal(source, "hidden_act", activation, " or ".join(ACTIVATIONS))
    variant["activation"] = ACTIVATIONS[activation]
    if settings.get("use_swiglu_ffn"):  # Of DINOv2, whatever hidden_act says.
        variant["activation"] = "silu"
    if "rotary_theta" in variant:
        parameters = settings.get("rope_parameters") or {}
        theta = parameters.get("rope_theta", settings["rope_theta"])
        variant["rotary_theta"] = float(theta)
    size, patch = settings["image_size"], settings["patch_size"]
    described = dict(
        kind="vit",
        model=dict(
            heads=settings["num_attention_heads"],
            norm_eps=settings["layer_norm_eps"],
            pool=_pool(model, settings),
            variant=variant,
        ),
    )
    if variant.get("rotary") is None:
        rows = size // patch if isinstance(size, int) else None
        if settings.get("num_patches"):
            rows = round(settings["num_patches"] ** 0.5)
        grid = (rows, rows) if rows else tuple(side // patch for side in size)
        described["grid"] = grid
    if "id2label" in config:
        labels = {int(key): name for key, name in config["id2label"].items()}
        described["class_names"] = [labels[index] for index in sorted(labels)]
    for ours, key in (("mean", "image_mean"), ("std", "image_std")):
        if key in preprocessing:
            described[ours] = tuple(preprocessing[key])
    return described


def _pool(model: Model, settings: Mapping) -> str:
    if model.pool == "attention" and not settings.get("vision_use_head", True):
        return "norm_avg"
    return model.pool


def _refusal(source: str, key: str, value: object, computed: object) -> ValueError:
    return ValueError(
        f"{source}: its config.json says {key}={value!r}; only {computed!r} is "
        "computed here."
    )
