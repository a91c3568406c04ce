# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept of a step that was not finite, so that it can be run again.

`WORKDIR/replay/step_N.npz` holds its batch, its key, and in words its recipe. Where the
run stops, `WORKDIR/replay/step_N/` holds the state before it as a checkpoint; where it
goes on, that state is made again from the run's own checkpoints.
"""

import io
import json
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from g2sd_jax import checkpoint, parallel, workdir

FOLDER = "replay"
KEEP = 3  # Files of a run that skips; a batch of pictures is large.


class Replay(NamedTuple):
    """One step, as read from its file."""

    step: int  # Counted from 1, as in the log.
    batch: dict  # Of numpy arrays, the rows of all hosts.
    key: jax.Array  # The root that the step's own key is folded from.
    config: dict
    told: dict  # What the step told when it was made.
    workdir: str  # Where it was made.
    processes: int  # That made it; the order of some data depends on their number.


def going(mesh) -> jax.Array:
    """The `going` of a first step, placed."""
    make = jax.jit(lambda: np.bool_(True), out_shardings=parallel.replicated(mesh))
    return make()


class Keeper:
    """Holds what the last two steps were made from, for one is told late.

    That costs one batch beyond the one at work, and no copy of the state: a run that
    stops applies nothing after its bad step (`going` of `step.train_step`).
    """

    def __init__(self, path: str, config, key: jax.Array, describe: Mapping):
        self._workdir, self._config = workdir.absolute(path), config
        self._key, self._describe = key, describe
        self._batches, self._state = {}, None

    def hold(self, step: int, batch: Mapping, state) -> None:
        """Called when `step` was dispatched; `state` is what it leaves."""
        self._batches[step] = batch
        self._batches.pop(step - 2, None)
        self._state = state

    def write(self, step: int, told: Mapping, stopping: bool) -> str:
        """Keeps `step`, on every process at once; returns the file's name."""
        path = epath.Path(self._workdir) / FOLDER / f"step_{step}.npz"
        with jax.transfer_guard("allow"):
            batch = self._batches[step]
            if jax.process_count() > 1:
                batch = multihost_utils.process_allgather(batch, tiled=True)
            batch = {f"batch/{name}": np.asarray(x) for name, x in batch.items()}
            if jax.process_index() == 0:
                self._write(path, step, batch, told)
            if stopping:
                before = self._state.replace(
                    step=jax.device_put(np.int32(step - 1), self._state.step.sharding)
                )
                beside = path.with_suffix("")
                if jax.process_index() == 0 and beside.exists():
                    beside.rmtree()  # The same step of an earlier attempt.
                saved = checkpoint.Manager(str(beside), keep=1)
                saved.save(step - 1, before, self._describe)
                saved.close()
        return str(path)

    def _write(self, path, step, batch, told):
        path.parent.mkdir(parents=True, exist_ok=True)
        older = sorted(path.parent.glob("step_*.npz"), key=number_of)
        for file in [file for file in older if file != path][: 1 - KEEP]:
            file.unlink()
        about = dict(
            step=step,
            told={name: float(value) for name, value in told.items()},
            config=workdir.plain(self._config),
            workdir=self._workdir,
            processes=jax.process_count(),
            versions=workdir.versions(),
        )
        packed = io.BytesIO()
        key = np.asarray(jax.random.key_data(self._key))
        np.savez_compressed(packed, about=json.dumps(about), key=key, **batch)
        workdir.write_bytes(path, packed.getvalue())


def number_of(path) -> int:
    return int(path.stem.removeprefix("step_"))


def read(path: str) -> Replay:
    """A file of `Keeper.write`.

    Raises:
        ValueError: it is not there, or not such a file.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} is not a file; a run that met a step that was not finite names "
            f"its WORKDIR/{FOLDER}/step_N.npz."
        )
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            about = json.loads(str(arrays["about"]))
            key = jax.random.wrap_key_data(arrays["key"])
            batch = {
                name.removeprefix("batch/"): arrays[name]
                for name in arrays.files
                if name.startswith("batch/")
            }
            known = ("step", "config", "told", "workdir")
            kept = {name: about[name] for name in known}
    except Exception as error:  # A zip can be damaged in many ways.
        raise ValueError(
            f"{path} is not a replay file of this project: {error}"
        ) from None
    if "processes" not in about:
        raise ValueError(
            f"{path} was made before replay files told the number of processes, on "
            "which the order of some data depends; start its run again with the same "
            "command: where it meets the step once more, it writes the file anew."
        )
    return Replay(batch=batch, key=key, processes=about["processes"], **kept)


def state_of(path: str) -> str | None:
    """The workdir-like folder with the state before the step, if it was kept."""
    beside = epath.Path(path).with_suffix("")
    return str(beside) if (beside / checkpoint.FOLDER).is_dir() else None
