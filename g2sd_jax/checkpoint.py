# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's checkpoints: saving, retention, restoring, and reading without a config."""

import contextlib
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import NamedTuple, TypeVar

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import core, digest, errors, parallel, workdir
from g2sd_jax.hosts import cluster

FOLDER = "checkpoints"  # Of a workdir.
STATE, DESCRIBE = "state", "describe"  # Folders of a checkpoint.
DIGESTS = "digests"  # Key of the description: {name of an array: digest}.
LEAST_SHARE = 64 * 1024  # Bytes of an array that a replica writes on its own.
T = TypeVar("T")


class Manager:
    """Saves and restores states and their descriptions in `workdir/checkpoints`.

    A save continues in the background under a temporary name, which no restore looks
    at; renaming it commits it.

    Args:
        path: the run's workdir.
        keep: number of newest checkpoints to keep; None opens the folder read-only.
        best: metric, such as `eval/top1`, whose best checkpoint is kept as well; "" for
            none.
        best_is: whether "max" or "min" of that metric is best.
    """

    def __init__(
        self,
        path: str,
        keep: int | None = None,
        best: str = "",
        best_is: str = "max",
    ):
        self._folder = workdir.Folder(workdir.absolute(path)) / FOLDER
        self._read_only = keep is None
        self._retention = Retention(keep, best, best_is, {})
        # The first step saved here, until it is read again, and that reading.
        self._unread, self._reading = None, None
        silence_orbax()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            best_fn=lambda scores: scores.get(best, 0.0),  # Has the scores written.
            create=not self._read_only,
            # Left behind by a killed save; nobody else writes here while we do.
            cleanup_tmp_directories=not self._read_only,
            save_root_metadata=False,
            lightweight_initialize=True,  # Else one damaged file is in every way.
        )
        with self._one_line_errors("opened"):
            self._orbax = ocp.CheckpointManager(
                self._folder,
                options=options,
                handler_registry=ocp.handlers.create_default_handler_registry(
                    state=_state_handler(),
                    describe=ocp.JsonCheckpointHandler(),
                ),
            )
        self._retention.scores.update(self.scores())

    def steps(self) -> list[int]:
        """Returns the steps of all committed checkpoints, the newest first."""
        return sorted(self._orbax.all_steps(), reverse=True)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, if there is one."""
        return next(iter(self.steps()), None)

    def scores(self) -> dict[int, dict]:
        """Returns {step: evaluation} for the checkpoints saved with an evaluation."""
        scores = {}
        for step in self.steps():
            with contextlib.suppress(
                Exception
            ):  # Its state may be intact all the same.
                scores[step] = self._orbax.metrics(step)
        return {step: metrics for step, metrics in scores.items() if metrics}

    def save(
        self,
        step: int,
        state: core.TrainState,
        describe: Mapping,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save `state`, after waiting for the previous save.

        Args:
            step: number of steps that led to the state.
            state: may be donated as soon as this returns.
            describe: JSON values that other verbs need, such as stage and classes.
            scores: evaluation of this state, saved with it; None where there was none.
        """
        if step in self._orbax.all_steps():
            return
        digests = {DESCRIBE: digest.of_json(describe), **digest.of(state)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            describe=ocp.args.JsonSave({**describe, DIGESTS: digests}),
        )
        # Orbax copies the state to the host in its own way, which counts as implicit.
        with self._one_line_errors("written"), jax.transfer_guard("allow"):
            if not self._folder.exists():
                raise FileNotFoundError("the folder has vanished")
            self._retention.scores[step] = dict(scores or {})
            self._orbax.save(step, args=items, metrics=dict(scores or {}))
        if self._unread is not None:  # This save has waited for the one before.
            self._start_reading()
        elif self._reading is None and jax.process_index() == 0:
            self._unread = step

    def check(self) -> None:
        """Raises the error of what goes on in the background, if it failed."""
        with self._one_line_errors("written"):
            self._orbax.check_for_errors()
        if self._unread is not None and not self._orbax.is_saving_in_progress():
            self._start_reading()
        if self._reading is not None and self._reading.done():
            self._end_reading()

    def wait(self) -> None:
        """Blocks until the last save is committed, and the first one was read again."""
        with self._one_line_errors("written"):
            self._orbax.wait_until_finished()
        if self._unread is not None:
            self._start_reading()
        if self._reading is not None:
            self._end_reading()

    def _start_reading(self) -> None:
        """Opens the first checkpoint again, in a thread: what is saved can be read."""
        pool = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._reading = pool.submit(self._read_again, self._unread)
        pool.shutdown(wait=False)
        self._unread = None

    def _end_reading(self) -> None:
        with self._one_line_errors("read again"):
            self._reading.result()

    def _read_again(self, first: int) -> None:
        for step in (first, *self.steps()):
            folder = self._folder / str(step)
            try:
                handler = _state_handler()
                args = _numpy_args(handler.metadata(folder / STATE).tree)
                state = handler.restore(folder / STATE, args=args)
                describe = ocp.JsonCheckpointHandler().restore(folder / DESCRIBE)
                return check_digests(state, describe)
            except Exception:
                if folder.exists():  # Else newer ones have replaced it in the meantime.
                    raise

    def restore(
        self, abstract: core.TrainState, steps: Sequence[int] | None = None
    ) -> core.TrainState:
        """Restores the newest readable state onto the shardings of `abstract`.

        Args:
            abstract: `ShapeDtypeStruct`s with shardings; a process reads only the
                shards of its own devices into memory.
            steps: steps to choose from, the preferred first; None tries all, the newest
                first.

        Raises:
            ValueError: none of them can be read on every process.
        """
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        )
        items = ocp.args.Composite(state=args, describe=ocp.args.JsonRestore())

        def read(step):
            restored = self._orbax.restore(step, args=items)
            check_digests(restored[STATE], restored[DESCRIBE])
            return restored[STATE]

        return self._newest(read, self.steps() if steps is None else steps)

    def restore_numpy(
        self, steps: Sequence[int] | None = None, *, optimiser_state: bool = False
    ) -> tuple[dict, dict, int]:
        """Restores the newest readable state as numpy arrays, without its config.

        Args:
            steps: steps to choose from, as for `restore`.
            optimiser_state: whether to read `opt_state` too, which is twice as large as
                the parameters.

        Returns:
            The state by field (`params`, `model_state`), its description, and its step.
        """
        read = lambda step: self._read_numpy(step, optimiser_state)
        return self._newest(read, self.steps() if steps is None else steps)

    def _read_numpy(self, step: int, optimiser_state: bool) -> tuple[dict, dict, int]:
        tree = self._orbax.item_metadata(step)[STATE].tree
        fields = ("params", "model_state", *("opt_state",) * optimiser_state)
        args = _numpy_args({field: tree[field] for field in fields})
        items = ocp.args.Composite(state=args, describe=ocp.args.JsonRestore())
        restored = self._orbax.restore(step, args=items)
        state, describe = restored[STATE], dict(restored[DESCRIBE])
        check_digests(state, describe)
        describe.pop(DIGESTS, None)
        return state, describe, step

    def _newest(self, read: Callable[[int], T], steps: Sequence[int]) -> T:
        """Returns `read(step)` of the first step that every process can read."""
        broken = {}
        for step in steps:
            reason, restored = None, None
            try:
                restored = read(step)
            except Exception as error:  # Files can be wrong in any way.
                reason = error_line(error)
            reasons = cluster.exchange(f"the checkpoint of step {step}", reason)
            reason = next(filter(None, reasons), None)
            if reason is None:
                self._set_aside(broken)
                return restored
            broken[step] = reason
        listed = "; ".join(f"step {step}: {why}" for step, why in broken.items())
        raise ValueError(
            f"no checkpoint in {self._folder} can be read ({listed}). Take another "
            "workdir, or move that folder away to start anew."
        )

    def _set_aside(self, broken: Mapping[int, str]) -> None:
        """Reports unreadable checkpoints by step, and moves them out of the way."""
        for step, reason in broken.items():
            parallel.print_once(
                f"{self._folder / str(step)} cannot be read and is left out: {reason}"
            )
            if self._read_only:
                continue
            # Else it would count as the newest, and nothing before it could be saved.
            target = self._folder.parent / "broken_checkpoints" / str(step)
            if jax.process_index() == 0:
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    target.rmtree()
                (self._folder / str(step)).rename(target)
        if broken and not self._read_only:
            cluster.exchange("broken checkpoints", None)
            self._orbax.reload()

    @contextlib.contextmanager
    def _one_line_errors(self, participle: str) -> Iterator[None]:
        """Turns any error into an `OSError` of one line, such as "… not be written"."""
        try:
            yield
        except Exception as error:  # Orbax and its storage raise their own kinds.
            raise OSError(
                f"a checkpoint in {self._folder} could not be {participle}: "
                f"{error_line(error)}. Look at the space and the "
                "permissions there; the same command then goes on from the last "
                "committed checkpoint."
            ) from error

    def close(self) -> None:
        """Waits for the save that is under way, and raises if it failed."""
        self.wait()
        with self._one_line_errors("written"):
            self._orbax.close()


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    """Writes a state's arrays, each replica its share of the large ones alone.

    Orbax would slice whatever divides by the number of replicas, and compile a program
    for every such shape and device: 168 in the first save of a tiny model on eight.
    """
    kinds = ocp.type_handlers
    arrays = kinds.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_SHARE)
    scalars = [(kind, kinds.ScalarHandler()) for kind in (int, float, np.number)]
    registry = kinds.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, kinds.NumpyHandler()), *scalars
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _numpy_args(tree: Mapping) -> ocp.args.PyTreeRestore:
    """Asks for the leaves of a tree as numpy arrays; others are not read."""
    item = jax.tree.map(lambda _: 0, tree)
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.args.PyTreeRestore(
        item=item,
        restore_args=jax.tree.map(lambda _: as_numpy, item),
        partial_restore=True,
    )


def check_digests(state: chex.ArrayTree, describe: Mapping) -> None:
    """Compares what was read with the digests that were saved along with it.

    Args:
        state: a state, or some fields of one by name.
        describe: its description, with the digests; older checkpoints have none.

    Raises:
        ValueError: names what is not as it was saved.
    """
    rest = dict(describe)
    expected = rest.pop(DIGESTS, None)
    if expected is None:
        return
    actual = {DESCRIBE: digest.of_json(rest), **digest.of(state)}
    changed = [name for name in actual if actual[name] != expected.get(name)]
    if changed:
        raise ValueError(
            f"{errors.shorten_list(changed)} is not what was saved: bits have changed"
        )


class LoadedCheckpoint(NamedTuple):
    """A checkpoint of a run, as numpy arrays."""

    state: Mapping  # `params`, `model_state`, and `opt_state` if it was asked for.
    describe: Mapping  # The description it was saved with.
    step: int
    steps: Sequence[int]  # Of all checkpoints of the run, the newest first.
    scores: Mapping[int, Mapping]  # step -> evaluation, where it was saved with one.

    @property
    def variables(self) -> dict:
        """The model's variables, as Flax takes them."""
        return {"params": self.state["params"], **self.state["model_state"]}


def read_run(path: str, key: str, *, optimiser_state: bool = False) -> LoadedCheckpoint:
    """Reads the newest checkpoint of a workdir, or `WORKDIR/checkpoints/STEP`.

    Args:
        path: a workdir, or a checkpoint in it.
        key: config key or option that `path` is the value of, for errors.
        optimiser_state: whether to read `opt_state` too, which is twice as large as the
            parameters.

    Raises:
        ValueError: there is no such workdir, or no readable checkpoint in it.
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
            listed = ", ".join(map(str, steps))
            raise ValueError(
                f"{key}={path!r} holds no complete checkpoint"
                f"{'' if step is None else f' of step {step}'} yet; it has "
                f"{f'those of steps {listed}' if steps else 'none'}."
            )
        state, describe, step = manager.restore_numpy(
            None if step is None else [step], optimiser_state=optimiser_state
        )
        return LoadedCheckpoint(
            state=state,
            describe=describe,
            step=step,
            steps=steps,
            scores=manager.scores(),
        )
    finally:
        manager.close()


def split_step(path: str) -> tuple[str, int | None]:
    """Splits `WORKDIR/checkpoints/STEP` into (WORKDIR, STEP), else (path, None)."""
    folder, _, last = path.rstrip("/").rpartition("/")
    if last.isdigit() and folder.rpartition("/")[2] == FOLDER:
        return folder.rpartition("/")[0] or ".", int(last)
    return path, None


def closing(saved: Manager) -> Callable[..., None]:
    """Makes the `__exit__` that closes `saved`, unless this process alone failed."""

    def leave(kind, _error, _trace):
        # A save ends on all processes or on none: nobody waits for those that failed.
        together = (errors.Preempted, FloatingPointError)
        if jax.process_count() == 1 or kind is None or issubclass(kind, together):
            saved.close()

    return leave


class Retention(NamedTuple):
    """Orbax's preservation policy: the newest checkpoints, and the best by a metric."""

    keep: int | None  # Number of newest checkpoints; None keeps all.
    best: str  # Metric of which the best is kept; "" for none.
    best_is: str  # "max" or "min"
    scores: dict[int, Mapping[str, float]]  # step -> evaluation, {} without one.

    def should_preserve(
        self,
        checkpoints: Sequence[ocp.checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: ocp.checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """Returns for each checkpoint, the oldest first, whether it stays."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        preserved = set(steps if self.keep is None else steps[-self.keep :])
        # Only finite scores count: NaN would win or lose by its place in a row.
        score = lambda step: self.scores.get(step, {}).get(self.best, math.nan)
        scored = [step for step in steps if math.isfinite(score(step))]
        if scored:
            sign = 1 if self.best_is == "max" else -1
            # Of equals the first, so that it does not wander.
            preserved.add(max(scored, key=lambda step: (sign * score(step), -step)))
        return [step in preserved for step in steps]


def retention_options(
    config: ConfigDict, metrics: Sequence[str], scores: Mapping[str, core.Score]
) -> dict:
    """`keep`, `best` and `best_is` of `Manager`, as `config.checkpoint` asks for them.

    Args:
        config: the whole recipe.
        metrics: those of the stage's evaluators, such as `eval/top1`.
        scores: the metrics among them that say which value is better.
    """
    options = {key: config.checkpoint[key] for key in ("keep", "best", "best_is")}
    best = options["best"]
    if options["best_is"]:
        errors.one_of("config.checkpoint.best_is", options["best_is"], ("max", "min"))
    if not best:
        return options
    if not metrics:
        raise ValueError(
            f"config.checkpoint.best={best!r}: stage {config.stage} judges "
            "nothing as it is; leave it empty, or set config.monitor.loss=true."
        )
    errors.one_of("config.checkpoint.best", best, metrics)
    if not options["best_is"]:
        if best not in scores:
            raise ValueError(
                f"config.checkpoint.best={best!r} does not say whether a larger value "
                "is a better one; set config.checkpoint.best_is to max or min."
            )
        options["best_is"] = "max" if scores[best].higher_is_better else "min"
    return options


def silence_orbax() -> None:
    """Keeps Orbax and TensorStore from printing errors, from now on in this process.

    The same error reaches the run, which reports it in one line (`--debug` shows all).
    """
    if getattr(threading.excepthook, "without_orbax", False):
        return
    default_thread_hook = threading.excepthook
    default_unraisable_hook = sys.unraisablehook

    def thread_hook(failure):
        if not type(failure.thread).__module__.startswith("orbax."):
            default_thread_hook(failure)

    def unraisable_hook(failure):  # Of reads under way when the first of them failed.
        code = getattr(failure.object, "cr_code", None)
        from_orbax = code is not None and "orbax" in code.co_filename
        if failure.object is None:
            from_orbax = "Event loop is closed" in str(failure.exc_value)
        if not from_orbax:
            default_unraisable_hook(failure)

    thread_hook.without_orbax = True
    threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
    from_orbax = lambda record: "orbax" in record.pathname + record.getMessage()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not from_orbax(record))


def error_line(error: BaseException) -> str:
    """Returns the part of a library's error that a person can act on."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        )
    text = str(error).strip() or type(error).__name__
    system_error = re.search(r"OS error \d+: (?:E[A-Z]+ )?([^\]]+)", text)
    if system_error:  # At the very end of TensorStore's message.
        return system_error[1]
    return text.splitlines()[0][:300]
