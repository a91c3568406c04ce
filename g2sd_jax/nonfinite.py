# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Replay files: a step with a loss or gradient that is not finite, to be run again.

`WORKDIR/replay/step_N.npz` holds its batch, its key, and its recipe as JSON. Where the
run stops, `WORKDIR/replay/step_N/` holds the state before it as a checkpoint; where it
goes on, that state is recomputed from the run's own checkpoints.
"""

import io
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from g2sd_jax import checkpoint, core, parallel, workdir

FOLDER = "replay"  # Of a workdir.
KEEP = 3  # Files of a run that skips bad steps; a batch of pictures is large.


class Replay(NamedTuple):
    """One step, as read from its file."""

    step: int  # Counted from 1, as in the log.
    batch: dict[str, np.ndarray]  # The rows of all hosts.
    key: jax.Array  # The root that the step's own key is folded from.
    config: dict
    metrics: dict[str, float]  # Of the step, when the run made it.
    workdir: str  # Of that run.
    processes: int  # Of that run; the order of some data depends on their number.


def going(mesh: Mesh) -> jax.Array:
    """Returns True on every device: the argument `going` of the first step."""
    make = jax.jit(lambda: np.bool_(True), out_shardings=parallel.replicated(mesh))
    return make()


class Keeper:
    """Keeps the batches of the last two steps, as a bad step is noticed one step late.

    That costs one batch beyond the one in use, and no copy of the state: a run that
    stops applies nothing after its bad step (`going` of `step.train_step`).

    Args:
        path: the workdir.
        config: the recipe of the run.
        key: root of the keys of all steps.
        describe: description that goes into the checkpoint of the state.
    """

    def __init__(
        self, path: str, config: ConfigDict, key: jax.Array, describe: Mapping
    ):
        self._workdir, self._config = workdir.absolute(path), config
        self._key, self._describe = key, describe
        self._batches, self._state = {}, None

    def hold(
        self, step: int, batch: Mapping[str, jax.Array], state: core.TrainState
    ) -> None:
        """Takes the batch of `step`, once it was dispatched, and the state after it."""
        self._batches[step] = batch
        self._batches.pop(step - 2, None)
        self._state = state

    def write(self, step: int, metrics: Mapping[str, float], stopping: bool) -> str:
        """Writes the replay file of `step`; to be called on every process.

        Args:
            step: one of the last two.
            metrics: of that step.
            stopping: whether the run ends here; the state is then saved as well.

        Returns:
            The path of the file.
        """
        path = epath.Path(self._workdir) / FOLDER / f"step_{step}.npz"
        with jax.transfer_guard("allow"):
            batch = self._batches[step]
            if jax.process_count() > 1:
                batch = multihost_utils.process_allgather(batch, tiled=True)
            batch = {f"batch/{name}": np.asarray(x) for name, x in batch.items()}
            if jax.process_index() == 0:
                self._write_file(path, step, batch, metrics)
            if stopping:
                state_before = self._state.replace(
                    step=jax.device_put(np.int32(step - 1), self._state.step.sharding)
                )
                folder = path.with_suffix("")
                if jax.process_index() == 0 and folder.exists():
                    folder.rmtree()  # The same step of an earlier attempt.
                manager = checkpoint.Manager(str(folder), keep=1)
                manager.save(step - 1, state_before, self._describe)
                manager.close()
        return str(path)

    def _write_file(
        self,
        path: epath.Path,
        step: int,
        batch: Mapping[str, np.ndarray],
        metrics: Mapping[str, float],
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        older = sorted(workdir.Folder(path.parent).glob("step_*.npz"), key=step_number)
        for file in [file for file in older if file != path][: 1 - KEEP]:
            file.unlink()
        about = dict(
            step=step,
            told={name: float(value) for name, value in metrics.items()},
            config=workdir.to_json_dict(self._config),
            workdir=self._workdir,
            processes=jax.process_count(),
            versions=workdir.versions(),
        )
        packed = io.BytesIO()
        key = np.asarray(jax.random.key_data(self._key))
        np.savez_compressed(packed, about=json.dumps(about), key=key, **batch)
        workdir.write_bytes(path, packed.getvalue())


def step_number(path: pathlib.PurePath) -> int:
    """Returns N of a path such as `replay/step_N.npz`."""
    return int(path.stem.removeprefix("step_"))


def read(path: str) -> Replay:
    """Reads a file that `Keeper.write` has written.

    Raises:
        ValueError: there is no such file, or it is no replay file.
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
            fields = {name: about[name] for name in ("step", "config", "workdir")}
            metrics = about["told"]
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
    return Replay(
        batch=batch,
        key=key,
        metrics=metrics,
        processes=about["processes"],
        **fields,
    )


def state_of(path: str) -> str | None:
    """Finds the folder that holds the state before the step of a replay file.

    Returns:
        A folder that `checkpoint.Manager` reads; None for a run that went on.
    """
    folder = epath.Path(path).with_suffix("")
    return str(folder) if (folder / checkpoint.FOLDER).is_dir() else None
