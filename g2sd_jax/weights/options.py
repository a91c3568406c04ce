# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The options of a state dict's encoder: what its tensors show, and what it tells."""

from collections.abc import Mapping

import numpy as np

from g2sd_jax.models import variants

# Of options that no tensor shows; another activation is a matter of the family.
ASK = (
    "{source} has a part of CLIP or SigLIP, whose MLPs may compute gelu, gelu_tanh or "
    "quick_gelu: no tensor shows which. Set --{where}.variant.activation (OpenAI's "
    "CLIP: quick_gelu; OpenCLIP: gelu; SigLIP: gelu_tanh), or name a directory with "
    "its config.json."
)


def of(
    arrays: Mapping[str, np.ndarray], describe: Mapping, source: str = "the file"
) -> variants.Variant:
    """Infers the options of an encoder.

    Args:
        arrays: by our PyTorch names.
        describe: the file's description, {} if it has none.
        source: the file, for errors.
    """
    stated = dict(describe.get("model", {}).get("variant") or {})
    stated = {key: value for key, value in stated.items() if value is not None}
    if "rotary_grid" in stated:
        stated["rotary_grid"] = tuple(stated["rotary_grid"])
    visible = _visible(arrays)
    if visible["gated"]:
        stated.setdefault("activation", "silu")
    if stated.get("rotary", "none") != "none" and "pos_embed" not in arrays:
        visible["positions"] = "none"
    scale = stated.get("layer_scale") or variants.PLAIN.layer_scale or 1.0
    visible["layer_scale"] = scale if "blocks.0.gamma_1" in arrays else 0.0
    return variants.Variant(**{**stated, **visible})


def undecided(describe: Mapping) -> bool:
    """Whether the activation matters and neither file nor family tells it."""
    variant = describe.get("model", {}).get("variant") or {}
    return "activation" in variant and variant["activation"] is None


def _visible(arrays: Mapping[str, np.ndarray]) -> dict:
    """The options that tensors show."""
    bias = "none"
    if "blocks.0.attn.q_bias" in arrays:
        bias = "qv"
    # A file that lacks all biases of an MLP too is broken, and will be refused.
    if "blocks.0.attn.qkv.bias" in arrays:
        bias = "qkv"
    registers = arrays.get("reg_token")
    return dict(
        class_token="cls_token" in arrays,
        registers=0 if registers is None else registers.shape[1],
        patch_bias="patch_embed.proj.bias" in arrays,
        pre_norm="norm_pre.weight" in arrays,
        attn_bias=bias,
        attn_norm="blocks.0.attn.norm.weight" in arrays,
        gated="blocks.0.mlp.fc1_g.weight" in arrays,
        mlp_norm="blocks.0.mlp.norm.weight" in arrays,
    )
