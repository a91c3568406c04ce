# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes, one file per stage; of the package they import only `g2sd_jax.configs`."""

if __name__ == "configs":  # In a checkout that is the working directory.
    raise ImportError("this folder is the package g2sd_jax.configs", name=__name__)
