# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of TensorFlow Datasets: at random from local files, else as a stream."""
