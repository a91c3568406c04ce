# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every test runs on eight pretend CPU devices, in full float32, shapes told apart.

The annotations of `ops`, `losses` and `models`, shapes and dtypes included, are checked
whenever one of their functions is called or traced.

Tests marked `slow` run with the option `--all` alone. Programs are compiled without
most optimisations, which halves the time of the tests; `optimised` switches them on.
"""

import os
import time

# Read when jax starts its backend, so they are set before anything imports it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Compiling takes most of the time of the tests, for programs that run for milliseconds.
# The processes that they start inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import fsspec
import jax
import jaxtyping
import numpy as np
import pytest
from etils.epath import backend, gpath

START = pytest.StashKey[float]()
CHECKED = ("g2sd_jax.ops", "g2sd_jax.losses", "g2sd_jax.models")
# Before anything imports them: what is imported already stays unchecked.
jaxtyping.install_import_hook(CHECKED, "type_checks.check")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# JAX_COMPILATION_CACHE_DIR switches the cache on; most test programs compile quickly.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        help="run the tests that are marked slow, too",
    )
    parser.addoption(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin no slow test later than so long after the start; skip, and tell",
    )


def pytest_configure(config):
    config.stash[START] = time.monotonic()


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    late = time.monotonic() - item.config.stash[START] > 60 * minutes
    if late and item.get_closest_marker("slow"):
        pytest.skip(f"slow: the {minutes:g} minutes for such tests are over")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        skip = pytest.mark.skip(reason="slow: the option --all runs it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture
def optimised():
    """Programs are compiled as users' are."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def bucket(monkeypatch):
    """A gs:// folder; what Google's own file system would do, fsspec's memory does."""
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    kind = type(backend.fsspec_backend)
    monkeypatch.setattr(kind, "fs", lambda self, path: memory)
    yield "gs://bucket/run"
    memory.store.clear()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
