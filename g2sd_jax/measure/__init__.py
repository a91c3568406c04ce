# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recipe's programs cost: timed here, compiled for elsewhere, or counted."""
