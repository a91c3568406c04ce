# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Chains: several recipes in a row, each starting from what an earlier one learned."""
