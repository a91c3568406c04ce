# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's own checkpoints: saved, kept, restored, and read by others."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from g2sd_jax import cluster, core, metrics, orbax_errors, retention, workdir

FOLDER = "checkpoints"


class Manager:
    """Orbax's manager of `workdir/checkpoints`: the state and its description.

    A save goes on in the background, under a name that no restore looks at, and is
    renamed when it is whole: that is what commits it.

    Args:
        path: the run's workdir.
        keep: how many of the newest to keep; None only reads, and touches nothing.
        best: a metric such as `eval/top1`: the checkpoint with its best value is kept
            as well. "" keeps none for that.
        best_is: "max" or "min".
    """

    def __init__(
        self,
        path: str,
        keep: int | None = None,
        best: str = "",
        best_is: str = "max",
    ):
        self._workdir = workdir.absolute(path)
        self._folder = epath.Path(self._workdir) / FOLDER
        self._reads = keep is None
        self._retention = retention.Retention(keep, best, best_is, {})
        orbax_errors.silence()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            best_fn=lambda scores: scores.get(best, 0.0),  # Has the scores written.
            create=not self._reads,
            # What a killed save left; nobody else writes here while we do.
            cleanup_tmp_directories=not self._reads,
            save_root_metadata=False,
            lightweight_initialize=True,  # Else one damaged file is in every way.
        )
        with self._told("opened"):
            self._orbax = ocp.CheckpointManager(
                self._folder,
                options=options,
                item_handlers=dict(
                    state=ocp.PyTreeCheckpointHandler(),
                    describe=ocp.JsonCheckpointHandler(),
                ),
            )
        self._retention.scores.update(self.scores())

    def steps(self) -> list[int]:
        """Of all committed checkpoints, the newest first."""
        return sorted(self._orbax.all_steps(), reverse=True)

    def latest(self) -> int | None:
        return next(iter(self.steps()), None)

    def scores(self) -> dict[int, dict]:
        """{step: evaluation} of the checkpoints that were saved with theirs."""
        found = {}
        for step in self.steps():
            with contextlib.suppress(Exception):  # Its state may be whole all the same.
                found[step] = self._orbax.metrics(step)
        return {step: scores for step, scores in found.items() if scores}

    def save(
        self,
        step: int,
        state: core.TrainState,
        describe: Mapping,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write `state`, after the previous save has ended.

        Args:
            step: of the state.
            state: may be donated as soon as this returns.
            describe: what later commands need to know.
            scores: the evaluation of this state, where one was made; kept with it.
        """
        if step in self._orbax.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            describe=ocp.args.JsonSave(dict(describe)),
        )
        with self._told("written"):
            if not self._folder.exists():
                raise FileNotFoundError("the folder has vanished")
            self._retention.scores[step] = dict(scores or {})
            self._orbax.save(step, args=items, metrics=dict(scores or {}))

    def check(self) -> None:
        """Raises what went wrong with the save in the background, if anything did."""
        with self._told("written"):
            self._orbax.check_for_errors()

    def wait(self) -> None:
        """Until what was saved is committed."""
        with self._told("written"):
            self._orbax.wait_until_finished()

    def restore(
        self, abstract: core.TrainState, steps: Sequence[int] | None = None
    ) -> core.TrainState:
        """The newest state, placed as the `ShapeDtypeStruct`s of `abstract` say.

        Args:
            abstract: its shapes and placements; nothing else is ever in memory.
            steps: to choose from, the preferred first; None takes all there are.
        """
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        )
        items = ocp.args.Composite(state=args)
        read = lambda step: self._orbax.restore(step, args=items)["state"]
        return self._newest(read, self.steps() if steps is None else steps)

    def restore_plain(
        self, steps: Sequence[int] | None = None, *, all_of_it: bool = False
    ) -> tuple[dict, dict, int]:
        """A state as numpy, its description and its step, without knowing the config.

        Args:
            steps: as for `restore`.
            all_of_it: with the optimiser's state, which is twice the parameters.
        """
        read = lambda step: self._plain(step, all_of_it)
        return self._newest(read, self.steps() if steps is None else steps)

    def _plain(self, step, all_of_it):
        tree = self._orbax.item_metadata(step)["state"].tree
        wanted = ("params", "model_state", *("opt_state",) * all_of_it)
        wanted = jax.tree.map(lambda _: 0, {key: tree[key] for key in wanted})
        numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(lambda _: numpy, wanted),
            partial_restore=True,
        )
        items = ocp.args.Composite(state=args, describe=ocp.args.JsonRestore())
        found = self._orbax.restore(step, args=items)
        return found["state"], found["describe"], step

    def _newest(self, read: Callable, steps: Sequence[int]):
        """`read(step)` of the first of `steps` that every process can read."""
        broken = {}
        for step in steps:
            reason, found = None, None
            try:
                found = read(step)
            except Exception as error:  # Files can be wrong in any way.
                reason = orbax_errors.in_a_line(error)
            reasons = cluster.everybody(f"the checkpoint of step {step}", reason)
            reason = next(filter(None, reasons), None)
            if reason is None:
                self._set_aside(broken)
                return found
            broken[step] = reason
        listed = "; ".join(f"step {step}: {why}" for step, why in broken.items())
        raise ValueError(
            f"no checkpoint in {self._folder} can be read ({listed}). Take another "
            "workdir, or move that folder away to start anew."
        )

    def _set_aside(self, broken: Mapping[int, str]):
        for step, reason in broken.items():
            metrics.say(
                f"{self._folder / str(step)} cannot be read and is left out: {reason}"
            )
            if self._reads:
                continue
            # Else it would count as the newest, and nothing before it could be saved.
            away = self._folder.parent / "broken_checkpoints" / str(step)
            if jax.process_index() == 0:
                away.parent.mkdir(exist_ok=True)
                if away.exists():
                    away.rmtree()
                (self._folder / str(step)).rename(away)
        if broken and not self._reads:
            cluster.everybody("broken checkpoints", None)
            self._orbax.reload()

    @contextlib.contextmanager
    def _told(self, done: str):
        try:
            yield
        except Exception as error:  # Orbax and its storage raise their own kinds.
            raise OSError(
                f"a checkpoint in {self._folder} could not be {done}: "
                f"{orbax_errors.in_a_line(error)}. Look at the space and the "
                "permissions there; the same command then goes on from the last "
                "committed checkpoint."
            ) from error

    def close(self) -> None:
        """Waits for the save that is under way, and says if it fails."""
        self.wait()
        with self._told("written"):
            self._orbax.close()


class Held(NamedTuple):
    """A checkpoint of a run, as numpy."""

    state: Mapping  # params, model_state, and opt_state if all of it was asked for
    describe: Mapping
    step: int
    steps: Sequence[int]  # Of all that the run keeps, the newest first.
    scores: Mapping[int, Mapping]  # step -> its evaluation, where it was saved with it

    @property
    def variables(self) -> dict:
        return {"params": self.state["params"], **self.state["model_state"]}


def read_run(path: str, key: str, *, all_of_it: bool = False) -> Held:
    """The newest checkpoint of a workdir, or the one of `WORKDIR/checkpoints/STEP`.

    Args:
        path: the value of `key`.
        key: what named it, for errors.
        all_of_it: with the optimiser's state, which is twice the parameters.
    """
    root, step = split_step(path)
    if not epath.Path(root).is_dir():
        raise ValueError(f"{key}={path!r} does not exist; name a workdir or a file.")
    if not (epath.Path(root) / FOLDER).is_dir():
        raise ValueError(
            f"{key}={path!r} is not a workdir: it has no folder {FOLDER}/; name the "
            "--workdir of a finished run, a weight file, or a directory of timm or "
            "transformers (with config.json and model.safetensors)."
        )
    manager = Manager(root)
    try:
        steps = manager.steps()
        if not steps or step not in (None, *steps):
            held = f"those of steps {', '.join(map(str, steps))}" if steps else "none"
            raise ValueError(
                f"{key}={path!r} holds no complete checkpoint"
                f"{'' if step is None else f' of step {step}'} yet; it has {held}."
            )
        wanted = None if step is None else [step]
        found = manager.restore_plain(wanted, all_of_it=all_of_it)
        return Held(*found, steps, manager.scores())
    finally:
        manager.close()


def split_step(path: str) -> tuple[str, int | None]:
    """`WORKDIR/checkpoints/STEP` as (WORKDIR, STEP), any other path as (path, None)."""
    above, _, last = path.rstrip("/").rpartition("/")
    if last.isdigit() and above.rpartition("/")[2] == FOLDER:
        return above.rpartition("/")[0] or ".", int(last)
    return path, None
