# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Array functions on the device that belong to no model and to no loss."""
