# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic-to-specific distillation of masked autoencoders in JAX and Flax."""

__version__ = "0.1.0"
