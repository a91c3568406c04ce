# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: one file per stage, plain ml_collections, no package code."""
