# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests against PyTorch libraries; skipped where the extra `interop` is missing."""

import warnings

import pytest

try:
    import torch
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    # torchvision's compiled operators do not load with a CPU build of another origin;
    # timm and transformers only need its Python side to import.
    register = torch.library.register_fake

    def lenient(name, *args, **kwargs):
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = lenient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchvision  # noqa: F401
    torch.library.register_fake = register


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
