# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""timm's config.json of encoders that are no plain ViT: DINOv2, CLIP, EVA-02, …"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from g2sd_jax.weights import foreign_names

ENDING = r"(\.\w+)?"  # Of an architecture: the tag of its weights.
ACTIVATIONS = {  # Of timm -> here.
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
POOLS = {"token": "cls", "map": "attention"}  # avg: by where the norm is.


class Entry(NamedTuple):
    """What the names of some of timm's architectures stand for."""

    pattern: str  # of the name
    variant: Mapping[str, object] = {}  # options that no tensor shows
    norm_eps: float = 1e-6
    pool: str = "token"  # global_pool where config.json is silent
    # Arguments whose value is the entry's -> that value; any other is refused.
    fixed: Mapping[str, object] = {}


EVA = dict(
    use_rot_pos_emb=True,
    rope_type="cat",
    rope_grid_offset=0.0,
    rope_grid_indexing="ij",
    rope_temperature=10000.0,
    rope_rotate_half=False,
    use_post_norm=False,
    attn_type="eva",
)
DINOV3 = EVA | dict(rope_type="dinov3", rope_temperature=100.0, rope_rotate_half=True)
TANH = r"patch32|so400m_patch16|giantopt|large_patch16_siglip(_gap)?_512"
ENTRIES = (  # The first that matches an architecture.
    Entry(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2"),
    Entry(r"deit3_(small|medium|base|large|huge)_patch\d+_\d+", dict(resize="bicubic")),
    Entry(r"vit_\w+_clip_quickgelu_\d+", dict(activation="quick_gelu"), 1e-5),
    Entry(r"vit_\w+_clip_\d+", norm_eps=1e-5),
    Entry(
        rf"vit_(?=\w*({TANH}))\w+_siglip(_gap)?_\d+",
        dict(activation="gelu_tanh", resize="bicubic"),
        pool="map",
    ),
    Entry(r"vit_\w+_siglip(_gap)?_\d+", dict(resize="bicubic"), pool="map"),
    Entry(
        r"naflexvit_(base|so400m)_patch16_siglip",
        dict(activation="gelu_tanh", resize="bilinear_antialias"),
        pool="map",
    ),
    Entry(
        r"eva02_(tiny|small|base|large)_patch\d+_\d+",
        dict(foreign_names.EVA02, resize="bicubic"),
        pool="avg",
        fixed=EVA,
    ),
    Entry(
        r"eva02_(base|large)_patch\d+_clip_\d+",
        dict(foreign_names.EVA02, resize="bicubic"),
        fixed=EVA,
    ),
    Entry(
        r"vit_\w+_patch16_dinov3(_qkvb)?",
        foreign_names.DINOV3,
        1e-5,
        pool="avg",
        fixed=DINOV3,
    ),
)
# Arguments that tensors show, or that are read here, or that a trained network ignores.
READ = re.compile(
    r"img_size|patch_size|in_chans|num_classes|embed_dim|depth|num_heads|mlp_ratio"
    r"|init_values|reg_tokens|num_reg_tokens|class_token|no_embed_class|pre_norm"
    r"|qkv_bias|qkv_fused|swiglu_mlp|swiglu_align_to|scale_mlp|scale_attn_inner"
    r"|act_layer|mlp_layer|global_pool|fc_norm|use_fc_norm|use_abs_pos_emb"
    r"|use_pre_transformer_norm|use_post_transformer_norm|ref_feat_shape|norm_eps"
    r"|dynamic_img_(size|pad)|strict_img_size|(\w+_)?drop_rate|(\w+_)?init(_scale)?"
    r"|device|dtype"
)
MLPS = ("mlp", "swiglupacked", "glumlp", "swiglu")


def find(architecture: str | None) -> Entry | None:
    """The entry of an architecture's name, None if it is no foreign one."""
    for entry in ENTRIES:
        if architecture and re.fullmatch(entry.pattern + ENDING, architecture):
            return entry
    return None


def describe(
    entry: Entry, config: Mapping, arrays: Mapping[str, np.ndarray], source: str
) -> dict:
    """Reads a description from config.json.

    Args:
        entry: of its architecture.
        config: of the file.
        arrays: by our PyTorch names.
        source: the directory, for errors.
    Raises:
        ValueError: an argument asks for what no model here computes.
    """
    args = dict(config.get("model_args") or {})
    pictures = config["pretrained_cfg"]
    _check(entry, args, source)
    variant = {"resize": "bicubic_antialias", "activation": "gelu", **entry.variant}
    if "blocks.0.mlp.fc1_g.weight" in arrays:
        variant["activation"] = "silu"
    if args.get("act_layer") is not None:
        name = _short(args["act_layer"])
        if name not in ACTIVATIONS:
            raise _refusal(source, "act_layer", args["act_layer"])
        variant["activation"] = ACTIVATIONS[name]
    if args.get("ref_feat_shape") is not None:
        reference = args["ref_feat_shape"]
        sides = (reference,) * 2 if isinstance(reference, int) else tuple(reference)
        variant["rotary_grid"] = sides
    model = dict(norm_eps=args.get("norm_eps") or entry.norm_eps, variant=variant)
    if args.get("num_heads"):
        model["heads"] = args["num_heads"]
    pool = args.get("global_pool") or pictures.get("global_pool") or entry.pool
    if pool == "avg":
        model["pool"] = "avg" if "fc_norm.weight" in arrays else "norm_avg"
    elif pool in POOLS:
        model["pool"] = POOLS[pool]
    elif "head.weight" in arrays:
        raise _refusal(source, "global_pool", pool)
    described = {"kind": "vit", "model": model}
    described |= {k: tuple(pictures[k]) for k in ("mean", "std") if k in pictures}
    kernel = arrays.get(foreign_names.PATCHES)
    size = args.get("img_size") or pictures.get("input_size", ())[1:]
    if size and kernel is not None and "pos_embed" in arrays:
        sides = (size, size) if isinstance(size, int) else size
        described["grid"] = tuple(side // kernel.shape[-1] for side in sides)
        if config["architecture"].startswith("naflex"):
            described["grid"] = (round(arrays["pos_embed"].shape[1] ** 0.5),) * 2
    return described


def _check(entry: Entry, args: Mapping, source: str) -> None:
    for key, value in args.items():
        if key in entry.fixed:
            if value is not None and value != entry.fixed[key]:
                raise _refusal(source, key, value)
        elif not READ.fullmatch(key) and value not in (None, False):
            raise _refusal(source, key, value)
    mlp = args.get("mlp_layer")
    if mlp is not None and _short(mlp) not in MLPS:
        raise _refusal(source, "mlp_layer", mlp)


def _short(layer: str) -> str:
    """A layer's name without its module: `timm.layers.mlp.GluMlp` -> `glumlp`."""
    return str(layer).rsplit(".", 1)[-1].lower()


def _refusal(source: str, key: str, value: object) -> ValueError:
    return ValueError(
        f"{source}: its config.json says {key}={value!r}, which is not computed here."
    )
