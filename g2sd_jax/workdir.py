# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder: whose it is, what it ran on, where its programs are cached."""

import json
import os
import platform
import subprocess

import flax
import jax
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache

from g2sd_jax import core


def claim(config, workdir: str) -> None:
    """Makes `workdir` this config's, or refuses if it is another's."""
    os.makedirs(workdir, exist_ok=True)
    mine = json.loads(config.to_json())
    path = os.path.join(workdir, "config.json")
    if os.path.exists(path):
        with open(path) as file:
            theirs = core.flatten(json.load(file))
        differ = [
            f"config.{key} was {theirs.get(key)!r}, now {value!r}"
            for key, value in core.flatten(mine).items()
            if theirs.get(key) != value and not _may_change(key)
        ]
        differ += [
            f"config.{key} was {theirs[key]!r}, now gone"
            for key in sorted(set(theirs) - set(core.flatten(mine)))
        ]
        if differ:
            raise ValueError(
                f"--workdir={workdir} belongs to another config: {'; '.join(differ)}. "
                "Use another workdir, or the same config."
            )
    if jax.process_index() == 0:
        write_json(path, mine)
        write_json(os.path.join(workdir, "environment.json"), environment())


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in core.MAY_CHANGE)


def environment() -> dict:
    """What a number of this run depends on besides its config."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = ["git", "-C", here, "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    packages = (jax, flax, optax, np)
    return dict(
        commit=commit.stdout.strip() or None,
        devices=sorted({device.device_kind for device in jax.devices()}),
        device_count=jax.device_count(),
        process_count=jax.process_count(),
        python=platform.python_version(),
        **{package.__name__: package.__version__ for package in packages},
    )


def cache_programs(config, workdir: str) -> None:
    """Keeps compiled programs, so that a restart does not compile again."""
    if config.cache_dir is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # The environment's wins over our default, not over the config.
    folder = os.path.abspath(config.cache_dir or os.path.join(workdir, "cache"))
    if jax.config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def write_json(path: str, value) -> None:
    """Written whole or not at all: a reader never sees half a file."""
    partial = f"{path}.partial"
    with open(partial, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
    os.replace(partial, path)
