# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The config.json of a directory that timm wrote: obeyed, or refused by the part."""

import re
from collections.abc import Mapping

import numpy as np

# The entries of timm whose other arguments are the defaults of its VisionTransformer.
ARCHITECTURE = re.compile(
    r"(?P<family>vit|deit|flexivit)_(?P<size>tiny|small|base|large|huge|giant|gigantic)"
    r"(?P<distilled>_distilled)?(_patch(?P<patch>\d+)_\d+)?(\.\w+)?"
)
HEADS = dict(tiny=3, small=6, base=12, large=16, huge=16, giant=16, gigantic=16)
COMPUTED = {  # Arguments that change the network -> what is computed here.
    "act_layer": (None, "gelu"),
    "norm_layer": (None, "layernorm"),
    "embed_norm_layer": (None,),
    "embed_layer": (None, "patchembed"),
    "block_fn": (None, "block"),
    "mlp_layer": (None, "mlp"),
    "attn_layer": (None, "attn", "attention"),
    "class_token": (True,),
    "qkv_bias": (True,),
    "proj_bias": (True,),
    "final_norm": (True,),
    "pos_embed": ("learn",),
    "qk_norm": (False, None),
    "scale_attn_norm": (False, None),
    "scale_mlp_norm": (False, None),
    "pre_norm": (False, None),
    "init_values": (None, 0),
    "reg_tokens": (0, None),
}
# How pictures are read: what is done here, and is timm's default.
PICTURE_RULES = dict(interpolation="bicubic", crop_mode="center")
CROP_SHARE = 0.875  # Where timm's config says none.
OF_HEADS = {"global_pool": ("token", "avg"), "pool_include_prefix": (False, None)}
# Arguments that are read here, told by shapes, or without effect on a trained network.
OTHERS = re.compile(
    r"img_size|patch_size|in_chans|num_classes|embed_dim|depth|num_heads|mlp_ratio"
    r"|no_embed_class|fc_norm|norm_eps|dynamic_img_(size|pad)|strict_img_size"
    r"|(\w+_)?drop_rate|weight_init|fix_init|device|dtype"
)


def is_timm(config: Mapping) -> bool:
    """Whether a config.json is one of timm's."""
    return "pretrained_cfg" in config


def describe(config: Mapping, arrays: Mapping[str, np.ndarray], source: str) -> dict:
    """Reads a description from config.json; what is missing is told by the shapes.

    Args:
        config: of the file.
        arrays: by PyTorch name; without a head, its pooling does not matter.
        source: the directory, for errors.
    Raises:
        ValueError: the model computes something else than ours.
    """
    entry = _entry(config, source)
    args, pictures = _arguments(config), config["pretrained_cfg"]
    _check(args, arrays, source)
    heads = args.get("num_heads") or HEADS.get(entry.get("size"))
    model = {}
    if heads:
        model["heads"] = heads
    if args.get("norm_eps") is not None:
        model["norm_eps"] = args["norm_eps"]
    described = {"kind": "vit", "model": model} if model else {"kind": "vit"}
    described |= {k: tuple(pictures[k]) for k in ("mean", "std") if k in pictures}
    patch = _side(args.get("patch_size") or int(entry.get("patch") or 0), source)
    size = args.get("img_size") or pictures.get("input_size", ())[1:]
    if patch and size:
        sides = (size, size) if isinstance(size, int) else size
        described["grid"] = tuple(side // patch for side in sides)
    names = config.get("label_names") or pictures.get("label_names")
    if isinstance(names, Mapping):  # By index, in case that some have no name.
        by_index = {int(index): name for index, name in names.items()}
        complete = sorted(by_index) == list(range(len(by_index)))
        names = [by_index[i] for i in sorted(by_index)] if complete else None
    if names:
        described["class_names"] = list(names)
    share = pictures.get("crop_pct") or CROP_SHARE
    described["data"] = dict(source="folder", eval_crop=float(share))
    described["other_rules"] = [
        f"{key}={pictures[key]!r}"
        for key, value in PICTURE_RULES.items()
        if pictures.get(key, value) != value
    ]
    return described


def adapt(arrays: Mapping[str, np.ndarray], config: Mapping) -> dict:
    """Arrays under the names, and with the rows, of the same network here."""
    args = _arguments(config)
    adapted = dict(arrays)
    if args["global_pool"] == "token" and "norm.weight" not in arrays:
        # A norm of the class token is the same before it is taken or after.
        for leaf in ("weight", "bias"):
            if f"fc_norm.{leaf}" in adapted:
                adapted[f"norm.{leaf}"] = adapted.pop(f"fc_norm.{leaf}")
    if args.get("no_embed_class") and "pos_embed" in arrays:
        # The class token gets no position, or one of zeros.
        table = arrays["pos_embed"]
        row = np.zeros_like(table[:, :1])
        adapted["pos_embed"] = np.concatenate([row, table], axis=1)
    return adapted


def _entry(config: Mapping, source: str) -> dict[str, str | None]:
    """The parts of timm's name for the architecture."""
    name = config.get("architecture")
    if name is None:
        return {}
    if name == "test_vit":
        return dict(size="test", patch="16")
    match = ARCHITECTURE.fullmatch(name)
    if not match:
        raise ValueError(
            f"{source}: its config.json says architecture={name!r}, which is not one "
            "of the vision transformers of timm that are computed here (plain vit_, "
            "deit_ or flexivit_, tiny to gigantic; DINOv2 and 3, deit3_, CLIP, SigLIP, "
            "EVA-02)."
        )
    return match.groupdict()


def _arguments(config: Mapping) -> dict:
    """The arguments of timm's model, with the defaults that matter here."""
    args = dict(config.get("model_args") or {})
    pictures = config["pretrained_cfg"]
    pool = pictures.get("global_pool") or config.get("global_pool") or "token"
    args.setdefault("global_pool", pool)
    name = str(config.get("architecture"))
    if name.startswith("flexivit"):
        args.setdefault("no_embed_class", True)
    if name == "test_vit":
        args.setdefault("num_heads", 2)
    return args


def _check(args: Mapping, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses arguments of a network that is not computed here."""
    has_head = "head.weight" in arrays
    for key, value in args.items():
        allowed = COMPUTED.get(key) or OF_HEADS.get(key)
        if allowed is None:
            if OTHERS.fullmatch(key) or value in (None, False):
                continue
            raise _refusal(source, key, value, "which is not known here")
        if key in OF_HEADS and not has_head:
            continue
        short_name = value
        if isinstance(value, str):
            short_name = value.rsplit(".", 1)[-1].replace("_", "").lower()
        if short_name not in allowed:
            values = " or ".join(repr(v) for v in allowed if v is not None)
            raise _refusal(source, key, value, f"but only {values} is computed here")
    fc_norm = args.get("fc_norm")
    if has_head and args["global_pool"] == "avg" and fc_norm is False:
        reason = "but a mean of patches (global_pool='avg') is normed after it here"
        raise _refusal(source, "fc_norm", fc_norm, reason)
    if args.get("no_embed_class") and "dist_token" in arrays:
        reason = "which is not computed here beside a distillation token"
        raise _refusal(source, "no_embed_class", True, reason)
    if args["global_pool"] == "avg" and "dist_token" in arrays:
        reason = "which is not computed here beside a distillation token"
        raise _refusal(source, "global_pool", "avg", reason)


def _refusal(source: str, key: str, value: object, reason: str) -> ValueError:
    return ValueError(f"{source}: its config.json says {key}={value!r}, {reason}.")


def _side(patch: int | list[int], source: str) -> int:
    """The side of a patch, which timm may give as two numbers."""
    sides = {patch} if isinstance(patch, int) else set(patch)
    if len(sides) != 1:
        raise _refusal(source, "patch_size", patch, "but only square patches are read")
    return sides.pop()
