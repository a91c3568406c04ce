# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Values of label maps that data, losses and evaluators must agree on."""

IGNORED = 255  # Of a pixel that belongs to no class: neither trained on nor scored.
