# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The workdir of a run: its config, its environment, its cache of compiled programs."""

import glob
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from g2sd_jax import core, errors, json_files, recipes

CONFIG = "config.json"
DONE = "DONE"  # Holds the final metrics of a run that has ended.
MEND_DONE = (
    "delete it, and start the run's own command once more: it writes the file anew, "
    "from the last checkpoint"
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "g2sd_jax")


class Folder(type(epath.Path())):
    """A folder in whose name brackets, `*` and `?` are letters.

    `epath` searches for the joined text, so that `runs/lr[1e-4]` has no files for it,
    nor for Orbax, which then commits checkpoints without their arrays.
    """

    def glob(self, pattern: str) -> Iterator[Self]:
        for path in epath.Path(glob.escape(str(self))).glob(pattern):
            yield type(self)(path)


def absolute(path: str) -> str:
    """Makes a path absolute; `gs://` paths are already."""
    return str(path) if remote(path) else os.path.abspath(path)


def remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket, where every write is atomic."""
    return "://" in str(path)


def local_folder(workdir: str) -> str:
    """Returns the workdir, or a folder of this machine in place of one in a bucket."""
    if not remote(workdir):
        return workdir
    return os.path.join(tempfile.gettempdir(), re.sub(r"\W+", "_", workdir))


def to_json_dict(config: ConfigDict) -> dict:
    """Converts a config as JSON keeps it: placeholders resolved, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def check(config: ConfigDict, workdir: str) -> None:
    """Refuses a workdir whose run has another config, and lists the differences.

    `open_keys.check_length` compares the number of steps.
    """
    check_folder(workdir)
    path = epath.Path(workdir) / CONFIG
    if not path.exists():
        return
    stored = recipes.expand_home(json_files.read(path, recipes.MEND_CONFIG))
    was = errors.flatten(recipes.rename_keys(stored, str(path)))
    now = errors.flatten(recipes.expand_home(to_json_dict(config)))
    was = {key: recipes.ADDED[key] for key in now.keys() & recipes.ADDED.keys()} | was
    differences = [
        f"config.{key} was {was.get(key, 'absent')!r}, now {now.get(key, 'gone')!r}"
        for key in sorted(now.keys() | was.keys())
        if (key in now) != (key in was) or now[key] != was[key]
        if not _may_change(key)
    ]
    if differences:
        raise ValueError(
            f"--workdir={workdir} belongs to another config: {'; '.join(differences)}. "
            "Use another workdir, or the same config."
        )


def check_folder(path: str) -> None:
    """Refuses a path on this machine that can be no folder, as a file is in the way."""
    if remote(path):
        return
    path = os.path.abspath(path)
    for place in (path, *map(str, pathlib.Path(path).parents)):
        if os.path.isdir(place):
            return
        if os.path.lexists(place):
            raise ValueError(
                f"--workdir={path}: {place} is no folder; name one, or a place where "
                "one can be made."
            )


def claimed(workdir: str) -> bool:
    """Whether a run has begun in `workdir`: from then on it leaves things there."""
    return (epath.Path(workdir) / CONFIG).exists()


def claim(config: ConfigDict, workdir: str) -> None:
    """Writes the config into `workdir`, once nothing keeps the run from starting.

    A DONE goes: it is that of a shorter run, which is continued.
    """
    check(config, workdir)
    if jax.process_index() == 0:
        path = epath.Path(workdir)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, to_json_dict(config))
        (path / DONE).unlink(missing_ok=True)
        path /= "environment.json"
        if not path.exists():  # Of the first start; a resume may run elsewhere.
            write_json(path, environment())


def _may_change(key: str) -> bool:
    names = (*core.MAY_CHANGE, *core.MAY_GROW)
    return any(key == name or key.startswith(f"{name}.") for name in names)


def environment() -> dict:
    """Describes devices, processes and versions, on which results may depend."""
    return dict(
        devices=sorted({device.device_kind for device in jax.devices()}),
        device_count=jax.device_count(),
        process_count=jax.process_count(),
        **versions(),
    )


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and packages, and the commit; needs no device."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = ["git", "-C", here, "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return dict(
        commit=commit.stdout.strip() or None,
        python=platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    )


def cache_programs(config: ConfigDict, workdir: str) -> None:
    """Switches JAX's compilation cache on, so that a restart does not compile again."""
    if config.cache_dir is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # The variable wins over our default, not over the config.
    use_cache(absolute(config.cache_dir or os.path.join(workdir, "cache")))


def use_cache(folder: str | None) -> None:
    """Points JAX's compilation cache at `folder`, or switches it off."""
    # By default JAX keeps programs that took a second to compile; a chain of small
    # models has many that take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if jax.config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def final_metrics(workdir: str) -> dict[str, float] | None:
    """Reads DONE of a workdir; None of a run that has not ended."""
    path = epath.Path(workdir) / DONE
    if not path.exists():
        return None
    return json_files.read_numbers(path, MEND_DONE)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def finite(value: Any) -> Any:
    """Figures for JSON, which has no NaN: None in place of what is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file atomically: a reader never sees half of it."""
    path = epath.Path(path)
    if remote(path):
        path.write_bytes(content)
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
