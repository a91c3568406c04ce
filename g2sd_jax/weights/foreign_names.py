# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""State dicts of foreign vision transformers under the names of `models.vit`.

A family is recognised by names that only it has. What no tensor shows, such as the
activation, is a fact of the family, or of a config.json beside the weights.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from g2sd_jax import errors
from g2sd_jax.weights import catalogue

Arrays = dict[str, np.ndarray]
PATCHES = "patch_embed.proj.weight"
BLOCK = r"^blocks\.(\d+)\."
# Parts that no model here computes -> how they are called in the refusal.
REFUSED = (
    (r".*\.attn\.(q_norm|k_norm)\..*", "norms of queries and keys"),
    (r".*(relative_position_bias_table|rel_pos_bias)\b.*", "relative positions"),
    (r"(cls_norm|local_cls_norm)\..*", "a last norm of the class token apart"),
    (r"norm_pre\.(?!weight|bias).*|patch_embed\.(norm|backbone).*", "a patch stem"),
    (r"(storage|reg|register)_tokens?_.*", "registers of another kind"),
    (r"embeds\.(pos_embed_[yx]|rope).*", "factorised positions"),
)


class Family(NamedTuple):
    """One spelling of a foreign model's state dict."""

    name: str
    recognises: Callable[[Mapping[str, np.ndarray]], bool]
    rules: Sequence[tuple[str, str]]  # (regex, replacement), in this order
    # Options of `models.variants.Variant`, or of the model, that no tensor shows.
    variant: Mapping[str, object] = {}
    model: Mapping[str, object] = {}
    dropped: str = r"(.*\.)?mask_token"  # Regex of what no encoder needs.
    # Mean and std of its training pictures; None: several families look alike.
    pictures: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def anchored(*suffixes: str) -> Callable[[Mapping[str, np.ndarray]], bool]:
    """Recognises a state dict in which each regex matches the end of some name."""
    patterns = [re.compile(rf"(^|.*\.){suffix}$") for suffix in suffixes]
    return lambda arrays: all(any(map(p.match, arrays)) for p in patterns)


LAYER_SCALE = (
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.ls(\d)\.gamma$", r".gamma_\1"),
)
CHUNKED = ((r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),)  # blocks.CHUNK.BLOCK.
# Original names of gated MLPs: w1 is activated, w2 not, w3 comes last.
W123 = (
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.mlp\.w12\.", ".mlp.fc1_gx."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
)
DINOV2_TRANSFORMERS = (
    (r"^(dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers?)\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1_proj."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1_gx."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    *LAYER_SCALE,
)
DINOV3_TRANSFORMERS = (
    (r"^(model|encoder|dinov3_vit)\.", ""),
    (r"^(model|encoder)\.", ""),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1_proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    *LAYER_SCALE,
)
CLIP_TRANSFORMERS = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.qkv."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
# Of models of pictures and text: all that is not the encoder of pictures.
TEXT = (
    r"(text_model|transformer|token_embedding|ln_final)\..*|positional_embedding"
    r"|(visual|text)_projection\..*|text_projection|logit_(scale|bias)"
    r"|(.*\.)?position_ids|(visual\.)?proj"
)
CLIP_OPENAI = (
    (r"^visual\.", ""),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
NAFLEX = ((r"^embeds\.proj\.", "patch_embed.proj."), (r"^embeds\.", ""))


def _is_siglip(arrays: Mapping[str, np.ndarray]) -> bool:
    theirs = anchored(r"embeddings\.patch_embedding\.weight")
    return theirs(arrays) and not anchored(r"embeddings\.class_embedding")(arrays)


def _is_dinov2(arrays: Mapping[str, np.ndarray]) -> bool:
    """DINOv2's own file: it has a mask token of two axes, others have none or three."""
    token = arrays.get("mask_token")
    scaled = anchored(r"ls1\.gamma")(arrays) and "pos_embed" in arrays
    return scaled and token is not None and token.ndim == 2


def _is_eva(arrays: Mapping[str, np.ndarray]) -> bool:
    """EVA-02, by whoever wrote the file: biases of q and v alone, and a gated MLP."""
    attn, mlp = "blocks.0.attn.", "blocks.0.mlp."
    biased = f"{attn}q_bias" in arrays or (
        f"{attn}q_proj.bias" in arrays and f"{attn}k_proj.bias" not in arrays
    )
    names = (f"{mlp}{layer}.weight" for layer in ("w3", "w12", "fc1_g"))
    return biased and (any(name in arrays for name in names) or _is_fused(arrays))


def _is_fused(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the first layer of an MLP has both halves of a gate."""
    first, last = (arrays.get(f"blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    if first is None or last is None:
        return False
    return len(first) == 2 * last.shape[1]


def _is_deit3(arrays: Mapping[str, np.ndarray]) -> bool:
    """DeiT III: LayerScale, no registers, and positions of the patches alone."""
    scaled = "blocks.0.gamma_1" in arrays or "blocks.0.ls1.gamma" in arrays
    table = arrays.get("pos_embed")
    return (
        scaled
        and PATCHES in arrays
        and "reg_token" not in arrays
        and table is not None
        and _lacks_class_row(table)
    )


def _lacks_class_row(table: np.ndarray) -> bool:
    """Whether the rows of a table make a square, which none less one would."""
    rows = table.shape[-2]
    return rows > 1 and math.isqrt(rows) ** 2 == rows


IMAGENET = (catalogue.MEAN, catalogue.STD)
OF_CLIP = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
HALVES = ((0.5,) * 3, (0.5,) * 3)
DINOV3 = dict(rotary="dinov3", rotary_theta=100.0)
EVA02 = dict(rotary="eva02", rotary_theta=10000.0)
FAMILIES = (  # The first that recognises a state dict reads it.
    Family(
        "DINOv2 with registers, transformers",
        anchored(
            r"patch_embeddings\.projection\.weight",
            r"layer_scale1\.lambda1",
            r"embeddings\.register_tokens",
        ),
        DINOV2_TRANSFORMERS,
        dict(resize="bicubic_antialias"),
        pictures=IMAGENET,
    ),
    Family(
        "DINOv2, transformers",
        anchored(r"patch_embeddings\.projection\.weight", r"layer_scale1\.lambda1"),
        DINOV2_TRANSFORMERS,
        pictures=IMAGENET,
    ),
    Family(
        "DINOv3, transformers",
        anchored(r"embeddings\.patch_embeddings\.weight", r"layer_scale1\.lambda1"),
        DINOV3_TRANSFORMERS,
        DINOV3,
        dict(norm_eps=1e-5),
        pictures=IMAGENET,
    ),
    Family(
        "CLIP, transformers",
        anchored(
            r"embeddings\.patch_embedding\.weight", r"embeddings\.class_embedding"
        ),
        CLIP_TRANSFORMERS,
        dict(activation=None),
        dict(norm_eps=1e-5),
        dropped=TEXT,
        pictures=OF_CLIP,
    ),
    Family(
        "SigLIP, transformers",
        _is_siglip,
        CLIP_TRANSFORMERS,
        dict(activation="gelu_tanh"),
        dropped=TEXT,
        pictures=HALVES,
    ),
    Family(
        "CLIP, OpenAI",
        anchored(r"conv1\.weight", r"class_embedding", r"ln_pre\.weight"),
        CLIP_OPENAI,
        dict(activation=None),
        dict(norm_eps=1e-5),
        dropped=TEXT,
        pictures=OF_CLIP,
    ),
    Family(
        "SigLIP 2, timm",
        anchored(r"embeds\.proj\.weight"),
        NAFLEX,
        dict(activation=None, resize="bilinear_antialias"),
        pictures=HALVES,
    ),
    Family(
        "DINOv3, original",
        anchored(r"rope_embed\.periods"),
        (
            (r"^storage_tokens$", "reg_token"),
            *LAYER_SCALE,
            *W123,
        ),
        DINOV3,
        dict(norm_eps=1e-5),
        dropped=r"mask_token|rope_embed\.periods|local_cls_norm\..*",
        pictures=IMAGENET,
    ),
    Family(
        "DINOv2, original",
        _is_dinov2,
        (
            (r"^register_tokens$", "reg_token"),
            *CHUNKED,
            *LAYER_SCALE,
            *W123,
        ),
        dict(resize="bicubic_offset"),
        pictures=IMAGENET,
    ),
    Family(
        "DINOv3, timm",
        lambda arrays: (
            PATCHES in arrays
            and "blocks.0.gamma_1" in arrays
            and "reg_token" in arrays
            and "cls_token" in arrays
            and "pos_embed" not in arrays
        ),
        (),
        DINOV3,
        dict(norm_eps=1e-5),
        pictures=IMAGENET,
    ),
    Family(
        "EVA-02",
        _is_eva,
        W123,
        EVA02,
        dropped=r"mask_token|(.*\.)?rope\.(freqs_cos|freqs_sin|bands|.*_emb)"
        r"|(.*\.)?(q|k|v|inner)_rope\..*|.*\.k_bias",
        pictures=OF_CLIP,
    ),
    Family("DeiT III", _is_deit3, LAYER_SCALE, pictures=IMAGENET),
    Family(
        "timm with LayerScale",
        anchored(r"patch_embed\.proj\.weight", r"ls1\.gamma"),
        LAYER_SCALE,
        dict(resize="bicubic_antialias"),
    ),
    Family(
        "CLIP, timm",
        anchored(r"patch_embed\.proj\.weight", r"norm_pre\.weight"),
        (),
        dict(activation=None, resize="bicubic_antialias"),
        dict(norm_eps=1e-5),
        pictures=OF_CLIP,
    ),
    Family(
        "SigLIP, timm",
        anchored(r"patch_embed\.proj\.weight", r"attn_pool\.latent"),
        (),
        dict(activation=None),
        pictures=HALVES,
    ),
)
# Widths of published models whose heads are not 64 channels wide.
HEADS = {1152: 16, 1408: 16, 4096: 32}


def translate(arrays: Mapping[str, np.ndarray], source: str) -> tuple[Arrays, dict]:
    """Renames a foreign state dict, and describes what its tensors do not show.

    Args:
        arrays: by the names of the file.
        source: the file, for errors.
    Returns:
        The arrays by our PyTorch names, and a description: `model`, `mean` and `std`;
        the arrays themselves and {} if they are of no foreign family.
    Raises:
        ValueError: a part is computed by no model here.
    """
    family = next((f for f in FAMILIES if f.recognises(arrays)), None)
    if family is None:
        return dict(arrays), {}
    renamed = {}
    for name, array in arrays.items():
        if re.fullmatch(family.dropped, name):
            continue
        for pattern, new in family.rules:
            name = re.sub(pattern, new, name)
        if not re.fullmatch(family.dropped, name):
            renamed[name] = array
    check_parts(renamed, source, family.name)
    variant = dict(family.variant)
    if "DINOv2" in family.name and "reg_token" in renamed:
        variant["resize"] = "bicubic_antialias"  # As those with registers were trained.
    if "rope_embed.periods" in arrays:
        variant["rotary_theta"] = _theta(arrays["rope_embed.periods"], source)
    model = dict(family.model, variant=variant)
    renamed = canonical(renamed)
    width = len(renamed[PATCHES]) if PATCHES in renamed else 0
    if width in HEADS or (width >= 192 and width % 64 == 0):
        model["heads"] = HEADS.get(width, width // 64)
    facts = {"model": model}
    if family.pictures is not None:
        facts |= dict(zip(("mean", "std"), family.pictures, strict=True))
    return renamed, facts


def check_parts(arrays: Mapping[str, np.ndarray], source: str, family: str) -> None:
    """Refuses tensors of parts that are not computed here, by the parts' names."""
    for pattern, part in REFUSED:
        names = [name for name in arrays if re.fullmatch(pattern, name)]
        if names:
            raise ValueError(
                f"{source} ({family}) has {part} ({errors.shorten_list(names)}), "
                "which no model here computes."
            )


def _theta(periods: np.ndarray, source: str) -> float:
    """The base of DINOv3's rotary periods, which have to be its powers."""
    quarter = len(periods)
    theta = float(periods[-1]) ** (quarter / (quarter - 1)) if quarter > 1 else 100.0
    for round_number in (100.0, 10000.0):
        theta = round_number if abs(theta / round_number - 1) < 0.05 else theta
    expected = theta ** (np.arange(quarter) / quarter)
    if not np.allclose(periods, expected, rtol=0.01):
        raise ValueError(
            f"{source}: rope_embed.periods are not the powers of one base; rotary "
            "positions between two given periods are not computed here."
        )
    return theta


def canonical(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Fuses q, k and v, splits fused gates, and shapes tokens and tables as here."""
    arrays = dict(arrays)
    _fuse_qkv(arrays)
    _split_biases(arrays)
    _split_gates(arrays)
    for name in ("cls_token", "reg_token", "attn_pool.latent"):
        if name in arrays:
            width = arrays[name].shape[-1]
            arrays[name] = arrays[name].reshape(1, -1, width)
    if "pos_embed" in arrays:
        table = arrays["pos_embed"]
        arrays["pos_embed"] = table.reshape(1, -1, table.shape[-1])
        if _lacks_class_row(table):
            arrays = with_class_row(arrays)
    if "reg_token" in arrays and not arrays["reg_token"].size:
        del arrays["reg_token"]  # As transformers stores none.
    if PATCHES in arrays and arrays[PATCHES].ndim == 2:
        # A linear layer on the pixels of a patch: row, column, channel.
        kernel = arrays[PATCHES]
        side = round((kernel.shape[1] / 3) ** 0.5)
        kernel = kernel.reshape(len(kernel), side, side, -1)
        arrays[PATCHES] = kernel.transpose(0, 3, 1, 2)
    return arrays


def with_class_row(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Adds the row of a class token that has no position: it is zero."""
    if "cls_token" not in arrays:
        return dict(arrays)
    table = arrays["pos_embed"]
    row = np.zeros_like(table[:, :1])
    return {**arrays, "pos_embed": np.concatenate([row, table], axis=1)}


THIRDS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def _fuse_qkv(arrays: Arrays) -> None:
    for name in list(arrays):
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)(query|q_proj)\.weight", name)
        if not match:
            continue
        thirds = next(each for each in THIRDS if match[2] in each)
        weights = [arrays.pop(f"{match[1]}{third}.weight", None) for third in thirds]
        if any(weight is None for weight in weights):
            continue  # Grafting will say what is missing.
        arrays[f"{match[1]}qkv.weight"] = np.concatenate(weights)
        biases = [arrays.pop(f"{match[1]}{third}.bias", None) for third in thirds]
        if biases[0] is None:
            continue
        if biases[1] is not None:
            arrays[f"{match[1]}qkv.bias"] = np.concatenate(biases)
        else:
            arrays[f"{match[1]}q_bias"] = biases[0]
            arrays[f"{match[1]}v_bias"] = biases[2]
    for leaf in ("weight", "bias"):  # Of an attention pool.
        fused = arrays.pop(f"attn_pool.qkv.{leaf}", None)
        if fused is not None:
            first = len(fused) // 3
            arrays[f"attn_pool.q.{leaf}"] = fused[:first]
            arrays[f"attn_pool.kv.{leaf}"] = fused[first:]


def _split_biases(arrays: Arrays) -> None:
    """A fused bias with a mask that blanks the key's becomes those of q and v."""
    for name in [name for name in arrays if name.endswith(".attn.qkv.bias_mask")]:
        mask = arrays.pop(name)
        prefix = name.removesuffix("qkv.bias_mask")
        bias = arrays.pop(f"{prefix}qkv.bias") * mask
        q_bias, k_bias, v_bias = np.split(bias, 3)
        if k_bias.any():
            arrays[f"{prefix}qkv.bias"] = bias
        else:
            arrays |= {f"{prefix}q_bias": q_bias, f"{prefix}v_bias": v_bias}


def _split_gates(arrays: Arrays) -> None:
    """One matrix for gate and value, the gate first, becomes two."""
    for name in list(arrays):
        match = re.fullmatch(r"(blocks\.\d+\.mlp\.)(fc1_gx|fc1)\.(weight|bias)", name)
        if not match:
            continue
        out = arrays.get(f"{match[1]}fc2.weight")
        twice = out is not None and len(arrays[name]) == 2 * out.shape[1]
        if match[2] == "fc1" and not twice:
            continue
        gate, value = np.split(arrays.pop(name), 2)
        arrays[f"{match[1]}fc1_g.{match[3]}"] = gate
        arrays[f"{match[1]}fc1_x.{match[3]}"] = value
    if "blocks.0.mlp.fc1_g.weight" not in arrays:  # The value of no gate.
        for name in [name for name in arrays if ".mlp.fc1_x." in name]:
            arrays[name.replace("fc1_x", "fc1")] = arrays.pop(name)
