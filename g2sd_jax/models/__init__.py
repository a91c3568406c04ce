# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Modules map arrays to named features; they know no losses and no stages.

The letters of shapes are those of `ops`.
"""
