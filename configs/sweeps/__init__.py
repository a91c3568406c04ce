# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sweeps: one file each, with what is compared and by which metric."""
