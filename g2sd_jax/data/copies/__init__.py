# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared copies of pictures: written by `g2sd prepare`, read as a source."""
