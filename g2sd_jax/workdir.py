# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder: whose it is, what it ran on, where its programs are cached."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import tempfile

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from g2sd_jax import core

CONFIG = "config.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "g2sd_jax")


def absolute(path: str) -> str:
    """A path that does not depend on the current folder; `gs://` paths never do."""
    return str(path) if remote(path) else os.path.abspath(path)


def remote(path) -> bool:
    """Whether it is in a bucket, whose objects are written whole or not at all."""
    return "://" in str(path)


def local(workdir: str) -> str:
    """The workdir itself, or this machine's folder for what a bucket can not hold."""
    if not remote(workdir):
        return workdir
    return os.path.join(tempfile.gettempdir(), re.sub(r"\W+", "_", workdir))


def plain(config) -> dict:
    """A config as JSON keeps it: placeholders resolved, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def check(config, workdir: str) -> None:
    """Refuses a workdir whose run has another config, telling the difference."""
    path = epath.Path(workdir) / CONFIG
    if not path.exists():
        return
    theirs = core.flatten(read_json(path))
    mine = core.flatten(plain(config))
    differ = [
        f"config.{key} was {theirs.get(key, 'absent')!r}, now {mine.get(key, 'gone')!r}"
        for key in sorted(mine.keys() | theirs.keys())
        if (key in mine) != (key in theirs) or mine[key] != theirs[key]
        if not _may_change(key)
    ]
    if differ:
        raise ValueError(
            f"--workdir={workdir} belongs to another config: {'; '.join(differ)}. "
            "Use another workdir, or the same config."
        )


def claim(config, workdir: str) -> None:
    """Makes `workdir` this config's, once it is known that the run can begin."""
    check(config, workdir)
    if jax.process_index() == 0:
        path = epath.Path(workdir)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, plain(config))
        path /= "environment.json"
        if not path.exists():  # Of the start; a resume may run elsewhere.
            write_json(path, environment())


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in core.MAY_CHANGE)


def environment() -> dict:
    """What a number of this run depends on besides its config."""
    return dict(
        devices=sorted({device.device_kind for device in jax.devices()}),
        device_count=jax.device_count(),
        process_count=jax.process_count(),
        **versions(),
    )


def versions() -> dict:
    """What is installed here; asks nothing of a device, so it may come before them."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = ["git", "-C", here, "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return dict(
        commit=commit.stdout.strip() or None,
        python=platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    )


def cache_programs(config, workdir: str) -> None:
    """Keeps compiled programs, so that a restart does not compile again."""
    if config.cache_dir is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # The environment's wins over our default, not over the config.
    use_cache(absolute(config.cache_dir or os.path.join(workdir, "cache")))


def use_cache(folder: str | None) -> None:
    """Points JAX's cache of compiled programs at a folder, or at none."""
    # JAX keeps what took a second; a chain of small models compiles many faster ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if jax.config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def read_json(path):
    return json.loads(epath.Path(path).read_text())


def write_json(path, value) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path, content: bytes) -> None:
    """Written whole or not at all: a reader never sees half a file."""
    path = epath.Path(path)
    if remote(path):
        path.write_bytes(content)
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
