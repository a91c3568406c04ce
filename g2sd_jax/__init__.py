# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic-to-specific distillation of masked autoencoders in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"

INTERFACE = ("train", "chain", "load")  # Functions of `g2sd_jax.api`.
__all__ = ["__version__", *INTERFACE]


def __getattr__(name: str) -> Any:
    """Imports the interface when it is first asked for: with it comes all of JAX."""
    if name not in INTERFACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from g2sd_jax import api

    return getattr(api, name)
