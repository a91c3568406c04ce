# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The threads and processes that fill batches, and the memory they share."""
