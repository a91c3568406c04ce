# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run of several processes: rendezvous, agreement, and loss of a process."""
