# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a plain vision transformer may have beside, or instead of, MAE's parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.ops import resize, rotary


def quick_gelu(x: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
    "silu": nn.silu,
}
BIASES = ("qkv", "qv", "none")
POSITIONS = ("learned", "none")
ROTARY = ("none", *rotary.CONVENTIONS)


class Variant(NamedTuple):
    """The options of `models.vit.Vit`; the defaults are the encoder of MAE and DeiT."""

    class_token: bool = True
    registers: int = 0  # Learned tokens after the class token, without positions.
    positions: str = "learned"  # A table for class token and patches; of POSITIONS.
    resize: str = "bicubic"  # How that table fits another grid; of resize.TABLES.
    rotary: str = "none"  # Positions that turn queries and keys; of ROTARY.
    rotary_theta: float = 100.0
    rotary_grid: tuple[int, int] = (16, 16)  # That eva02's was trained on.
    patch_bias: bool = True
    pre_norm: bool = False  # A layer norm before the blocks.
    attn_bias: str = "qkv"  # Of BIASES: which of query, key and value have one.
    attn_norm: bool = False  # A layer norm before the attention's last layer.
    activation: str = "gelu"  # Of ACTIVATIONS.
    gated: bool = False  # MLPs whose activated half multiplies the other.
    mlp_norm: bool = False  # A layer norm before the MLP's last layer.
    layer_scale: float = 0.0  # Where factors of the residual branches start; 0: none.

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches."""
        return self.class_token + self.registers


PLAIN = Variant()
CHOICES = {
    "positions": POSITIONS,
    "resize": tuple(resize.TABLES),
    "rotary": ROTARY,
    "attn_bias": BIASES,
    "activation": tuple(ACTIVATIONS),
}


def read(model: ConfigDict, where: str = "config.model") -> Variant:
    """Reads the options of a model's config; runs from before them have none.

    Args:
        model: the config's group of keys.
        where: the group's name, for errors.
    """
    options = dict(model.get("variant") or {})
    options = {key: value for key, value in options.items() if value is not None}
    for key, choices in CHOICES.items():
        if key in options:
            errors.one_of(f"{where}.variant.{key}", options[key], choices)
    if "rotary_grid" in options:
        options["rotary_grid"] = tuple(options["rotary_grid"])
    return Variant(**options)


def differences(variant: Variant) -> dict[str, Any]:
    """The options that are not the defaults, by name."""
    values = variant._asdict()
    return {key: values[key] for key in values if values[key] != getattr(PLAIN, key)}
