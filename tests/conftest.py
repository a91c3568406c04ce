# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every test runs on eight pretend CPU devices, in full float32, shapes told apart."""

import os

# Read when jax starts its backend, so they are set before anything imports it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# JAX_COMPILATION_CACHE_DIR switches the cache on; most test programs compile quickly.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
