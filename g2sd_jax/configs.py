# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the folder `configs` of a checkout importable as `g2sd_jax.configs`.

An installed g2sd_jax holds that folder itself, and Python prefers it to this file.
"""

import pathlib

# A module with a `__path__` is a package, whose submodules are looked up there. So the
# folder stays at the top, where people look for recipes, and no other one is exposed.
__path__ = [str(pathlib.Path(__file__).resolve().parents[1] / "configs")]
