# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The beginning of a program that uses exported files without this package."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]


# Blocks the imports of this package and of the libraries that exports do without.
BEGINNING = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("g2sd_jax", "flax", "orbax", "tensorflow"):
            raise ImportError(f"{name} is blocked by the test")

sys.meta_path.insert(0, Blocker())
import numpy as np

folder, pictures, answers = sys.argv[1:]
image = np.load(pictures)
"""
