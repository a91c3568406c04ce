# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Examples as numpy batches, in an order that depends on nothing but the seed."""
