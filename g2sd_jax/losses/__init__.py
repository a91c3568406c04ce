# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses are equations: arrays in, one scalar out (letters of shapes: see `ops`)."""
