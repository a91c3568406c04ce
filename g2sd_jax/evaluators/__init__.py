# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How answers are scored: folds over the evaluation set, one file each."""
