# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's own checkpoints, and strict loading of anybody's weights."""

import contextlib
import dataclasses
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from g2sd_jax import cluster, core, metrics
from g2sd_jax import workdir as folder
from g2sd_jax.models import mae, vit
from g2sd_jax.ops import patches, relative, resize
from g2sd_jax.weights import catalogue, importers, relative_tables, torch_names

FOLDER = "checkpoints"
# Of PyTorch's state dicts; the first has no use here, the second is a constant.
BUFFERS = (r".*\.num_batches_tracked", r".*\.relative_position_index")
CONV_SEG = "decode_head.conv_seg"


class Retention(NamedTuple):
    """Which checkpoints stay: the newest, and the best by a metric; Orbax asks it."""

    keep: int | None  # None: all
    best: str  # "": none for being the best
    best_is: str  # max, min
    scores: dict  # step -> its evaluation, empty where there was none

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps if self.keep is None else steps[-self.keep :])
        judged = [step for step in steps if self.best in self.scores.get(step, {})]
        if judged:
            sign = 1 if self.best_is == "max" else -1
            # Of equals the first, so that it does not wander.
            kept.add(max(judged, key=lambda s: (sign * self.scores[s][self.best], -s)))
        return [step in kept for step in steps]


def silence() -> None:
    """Leaves out what Orbax and its storage print when something fails.

    The same error reaches the run, which tells it in one line (`--debug` shows all).
    """
    if getattr(threading.excepthook, "without_orbax", False):
        return
    in_thread, unraised = threading.excepthook, sys.unraisablehook

    def hook(failed):
        if not type(failed.thread).__module__.startswith("orbax."):
            in_thread(failed)

    def late(failed):  # Reads that were under way when the first of them failed.
        code = getattr(failed.object, "cr_code", None)
        theirs = code is not None and "orbax" in code.co_filename
        if failed.object is None:
            theirs = "Event loop is closed" in str(failed.exc_value)
        if not theirs:
            unraised(failed)

    hook.without_orbax = True
    threading.excepthook, sys.unraisablehook = hook, late
    orbax = lambda record: "orbax" in record.pathname + record.getMessage()
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not orbax(record))


class Manager:
    """Orbax's manager of `workdir/checkpoints`: the state and its description.

    A save goes on in the background, under a name that no restore looks at, and is
    renamed when it is whole: that is what commits it.

    Args:
        workdir: the run's folder.
        keep: how many of the newest to keep; None only reads, and touches nothing.
        best: a metric such as `eval/top1`: the checkpoint with its best value is kept
            as well. "" keeps none for that.
        best_is: "max" or "min".
    """

    def __init__(
        self,
        workdir: str,
        keep: int | None = None,
        best: str = "",
        best_is: str = "max",
    ):
        self._workdir = folder.absolute(workdir)
        self._folder = epath.Path(self._workdir) / FOLDER
        self._reads = keep is None
        core.one_of("config.checkpoint.best_is", best_is, ("max", "min"))
        self._retention = Retention(keep, best, best_is, {})
        silence()
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
        best = self._retention.best
        if scores and best and best not in scores:
            known = ", ".join(scores)
            raise ValueError(
                f"config.checkpoint.best={best!r} is not among the metrics of "
                f"this stage: {known}."
            )
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
                reason = _first_line(error)
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
                f"{_first_line(error)}. Look at the space and the permissions there; "
                "the same command then goes on from the last committed checkpoint."
            ) from error

    def close(self) -> None:
        """Waits for the save that is under way, and says if it fails."""
        self.wait()
        with self._told("written"):
            self._orbax.close()


def _first_line(error: BaseException) -> str:
    """The part of a library's error that a person can act on."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        )
    text = str(error).strip() or type(error).__name__
    of_the_system = re.search(r"OS error \d+: (?:E[A-Z]+ )?([^\]]+)", text)
    if of_the_system:  # At the very end of what the storage has to say.
        return of_the_system[1]
    return text.splitlines()[0][:300]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights from anywhere, under their PyTorch names."""

    source: str
    arrays: Mapping[str, np.ndarray]
    describe: Mapping

    @property
    def has_decoder(self) -> bool:
        return any(name.startswith("decoder_blocks.") for name in self.arrays)

    @property
    def size(self) -> str | None:
        """Its row of `models.vit.SIZES`, if it has one."""
        return _named_size({name: a.shape for name, a in self.arrays.items()})

    def summary(self) -> str:
        """A few words on what the file holds."""
        arrays = {n.removeprefix("backbone."): a for n, a in self.arrays.items()}
        width, depth = _encoder({name: a.shape for name, a in arrays.items()})
        parts = [f"an encoder of {depth} blocks, width {width or '?'}"]
        parts += ["a decoder"] if self.has_decoder else ["no decoder"]
        for head, kind in (("head", "a head"), (CONV_SEG, "a segmentation head")):
            if f"{head}.weight" in arrays:
                parts.append(f"{kind} of {len(arrays[f'{head}.weight'])} classes")
        kernel = arrays.get("patch_embed.proj.weight")
        if kernel is not None:
            parts.append(
                f"patches of {kernel.shape[2]} pixels, {kernel.shape[1]} channels"
            )
        return ", ".join(parts)


def read(path: str, key: str) -> Weights:
    """Weights of a workdir or a file; `key` is the config key to name in errors."""
    if not path:
        raise ValueError(
            f"{key} is empty: name a workdir of an earlier stage or a weight file "
            "(random:SEED gives untrained weights, for smoke runs and measurements)."
        )
    if epath.Path(path).is_file() or importers.is_directory(path):
        arrays, describe = importers.read(path, key)
        return Weights(path, arrays, describe)
    held = read_run(path, key)
    grid = held.describe["grid"] if held.describe.get("kind") == "mae" else None
    return Weights(path, torch_names.to_torch(held.variables, grid), held.describe)


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
    workdir, step = split_step(path)
    if not epath.Path(workdir).is_dir():
        raise ValueError(f"{key}={path!r} does not exist; name a workdir or a file.")
    if not (epath.Path(workdir) / FOLDER).is_dir():
        raise ValueError(
            f"{key}={path!r} is not a workdir: it has no folder {FOLDER}/; name the "
            "--workdir of a finished run, a weight file, or a directory of timm or "
            "transformers (with config.json and model.safetensors)."
        )
    manager = Manager(workdir)
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


def run_variables(path: str, shapes: Mapping, key: str) -> tuple[dict, dict]:
    """All variables of a run as they are, and its description.

    Args:
        path: a workdir.
        shapes: what the run's stage starts from; the variables must be shaped alike.
        key: the option to name in errors.
    """
    held = read_run(path, key)
    variables, describe = held.variables, held.describe
    mine, theirs = core.flatten(shapes), core.flatten(variables)
    differ = [
        f"{name} is {_shape(theirs, name)}, expected {_shape(mine, name)}"
        for name in sorted(mine.keys() | theirs.keys())
        if _shape(mine, name) != _shape(theirs, name)
    ]
    if differ:
        raise ValueError(
            f"{key}={path!r} does not fit its config ({_few(differ)}); leave "
            "config.model and config.data.classes as the run had them."
        )
    return variables, describe


def _shape(leaves, name):
    return tuple(leaves[name].shape) if name in leaves else "absent"


def check_heads(weights: Weights, model, where: str) -> None:
    """Refuses a head count other than the weights', which no shape would betray.

    Args:
        weights: as read.
        model: `config.model` or `config.teacher.model`.
        where: which of the two.
    """
    theirs = weights.describe.get("model", {}).get("heads")
    mine = vit.size(model, where).heads
    if theirs not in (None, mine):
        raise ValueError(
            f"{where} has {mine} heads, but {weights.source!r} was trained with "
            f"{theirs}; set --{where}.heads={theirs}."
        )
    theirs = (weights.describe.get("decoder") or {}).get("heads")
    if weights.has_decoder and theirs is not None and "decoder" in model:
        mine = mae.decoder(model, where).heads
        if mine != theirs:
            raise ValueError(
                f"{where}'s decoder has {mine} heads, but {weights.source!r} was "
                f"trained with {theirs}; set --{where}.dec_heads={theirs}."
            )


def check_pictures(weights: Weights, config, key: str) -> None:
    """Refuses weights that were trained on pictures of another normalisation.

    Foreign files do not say theirs; runs of this project do.
    """
    for name in ("mean", "std"):
        theirs = weights.describe.get(name)
        if theirs is not None and tuple(theirs) != tuple(config.data[name]):
            raise ValueError(
                f"{key}={weights.source!r} was trained with data.{name}="
                f"{tuple(theirs)}, but config.data.{name}="
                f"{tuple(config.data[name])}; set --config.data.{name}="
                f"{','.join(map(str, theirs))}."
            )


def check_classes(weights: Weights, of_data: Callable, key: str) -> None:
    """Refuses a head whose classes are others than the data's, or in another order.

    Foreign files do not name theirs, nor do some data sets.

    Args:
        weights: as read.
        of_data: () -> names in label order; asked only where there are two to compare.
        key: the config key to name in errors.
    """
    theirs = tuple(weights.describe.get("class_names") or ())
    names = tuple(of_data()) if theirs else ()
    if not names or theirs == names:
        return
    if len(theirs) == len(names):
        label = next(i for i in range(len(names)) if theirs[i] != names[i])
        told = (
            f"its label {label} is {theirs[label]!r}, that of the data {names[label]!r}"
        )
    else:
        told = f"it knows {len(theirs)} classes ({_few(theirs)}), the data {len(names)}"
    raise ValueError(
        f"{key}={weights.source!r} was trained on other classes: {told}. Its answers "
        "would be taken for others; use a teacher of these classes, or the classes of "
        "this teacher in the same order."
    )


def matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The names that one of the regexes matches whole."""
    return {name for name in names if any(re.fullmatch(p, name) for p in patterns)}


def graft(
    variables: Mapping,
    weights: Weights,
    *,
    grid: tuple[int, int],
    fresh: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> dict:
    """`variables` with their leaves taken from `weights`, strictly both ways.

    Args:
        variables: {"params": ...} and perhaps batch statistics, arrays or shapes; a
            fresh one is kept.
        weights: what to take them from.
        grid: (rows, columns) of patches of the target. Tables of another grid are
            resized: trained positions by bicubic interpolation, relative ones by a
            spline, class rows untouched. A sin-cos table that the target does not store
            is checked and left out.
        fresh: regexes of names that stay as initialised, whatever the file holds.
        dropped: regexes of names of the file that are not needed.
    Raises:
        ValueError: a parameter is neither found nor declared fresh, an entry neither
            used nor declared dropped, or a shape differs; all are listed.
    """
    shapes = torch_names.shapes(variables)
    arrays = {
        name: _fitted(name, array, shapes.get(name), weights, grid)
        for name, array in weights.arrays.items()
    }
    keep = matching(shapes, fresh)
    found = {n for n in shapes if n in arrays and n not in keep}
    constant = {n for n in arrays if n.endswith("pos_embed") and n not in shapes}
    constant -= matching(constant, dropped)
    spare = set(arrays) - found - constant
    lost = spare - matching(spare, [*dropped, *fresh, *BUFFERS])
    missing = set(shapes) - found - keep
    wrong = [
        f"{name} is {arrays[name].shape}, expected {shapes[name]}"
        for name in sorted(found)
        if arrays[name].shape != shapes[name]
    ]
    complaints = [f"missing: {_few(missing)}"] * bool(missing)
    complaints += [f"not expected: {_few(lost)}"] * bool(lost)
    complaints += [f"of another shape: {_few(wrong)}"] * bool(wrong)
    if complaints:
        raise ValueError(
            f"{weights.source} does not fit ({'; '.join(complaints)}). It holds "
            f"{weights.summary()}; check the path, and config.model or "
            f"config.teacher.model against it.{_others(shapes, keep, missing)}"
        )
    for name in constant:
        _check_constant(name, arrays[name], grid, weights)
    for name in matching(arrays, BUFFERS[1:]):
        _check_index(name, arrays[name], weights)
    metrics.say(
        f"{weights.source}: {len(found)} found, {len(keep)} fresh ({_few(keep)}), "
        f"{len(spare)} dropped ({_few(spare)})"
    )
    taken = {name: arrays[name] for name in found}
    return torch_names.from_torch(variables, taken)


def _others(shapes, keep, missing):
    """Which published files have what is missing, if any has this shape."""
    size = _named_size(shapes)
    if not missing or size not in catalogue.SIZES.values():
        return ""
    holds = "classifier" if "head.weight" in shapes.keys() - keep else "encoder"
    holds = "autoencoder" if "decoder_pred.weight" in shapes else holds
    return f" Published files that would do: {catalogue.would_do(holds, size)}."


def _encoder(shapes):
    """(width, depth) of an encoder of these shapes."""
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in shapes]
    depth = 1 + max((int(found[1]) for found in blocks if found), default=-1)
    return (shapes.get("cls_token") or (0,))[-1], depth


def _named_size(shapes):
    shape = _encoder(shapes)
    return next((name for name, row in vit.SIZES.items() if row[:2] == shape), None)


def _few(names, most=4):
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _fitted(name, table, wanted, weights, grid):
    """A table of positions for `grid`; anything else, and what cannot be, as it is."""
    if wanted is None or table.shape == wanted:
        return table
    if name.endswith("pos_embed") and table.shape[2:] == wanted[2:]:
        theirs = _grid_of(weights, table.shape[1] - 1)
        if theirs[0] * theirs[1] + 1 == table.shape[1]:
            return np.asarray(resize.resize_pos_embed(table, theirs, grid))
    if name.endswith("relative_position_bias_table") and table.shape[1:] == wanted[1:]:
        sides = round((len(table) - relative.EXTRA) ** 0.5)
        theirs = _grid_of(weights, ((sides + 1) // 2) ** 2)
        if relative.rows(theirs) == len(table):
            return relative_tables.resize(table, theirs, grid)
    return table  # Not a matter of the grid; the shapes are compared later.


def _grid_of(weights, patches):
    """The grid a file was made for: as it says, else the square of so many patches."""
    return tuple(weights.describe.get("grid") or [round(patches**0.5)] * 2)


def _check_index(name, index, weights):
    theirs = _grid_of(weights, len(index) - 1)
    if not np.array_equal(index, relative.index(theirs)):
        raise ValueError(
            f"{weights.source}: {name} {index.shape} does not number the offsets of a "
            f"{theirs[0]}x{theirs[1]} grid as here: row offsets slowest, then three "
            "for the class token. Its tables would be read wrongly."
        )


def _check_constant(name, table, grid, weights):
    expected = patches.sincos_table(table.shape[-1], grid)
    if table.shape != expected.shape or not np.allclose(table, expected, atol=1e-4):
        raise ValueError(
            f"{weights.source}: {name} {table.shape} is not the sin-cos table of a "
            f"{grid[0]}x{grid[1]} grid; a masked autoencoder here has no other. Check "
            "config.model.image_size and patch (or config.teacher.model)."
        )


def load_variables(
    path: str,
    fit: Callable,
    *,
    grid: tuple[int, int],
    key: str = "config.teacher.checkpoint",
    rename: Callable = core.identity,
    **declared,
) -> dict:
    """Frozen variables from a workdir, a file, or `random:SEED`.

    Args:
        path: the value of `key`.
        fit: weights (None for random ones) -> the `init` (key -> variables) of the
            module that they have to fill; raises if they can not serve.
        grid: as for `graft`.
        key: the config key to name in errors.
        rename: weights -> weights under the module's names, where a file's may differ.
        **declared: `fresh` and `dropped` of `graft`.
    """
    if path.startswith("random:"):
        seed = path.removeprefix("random:")
        if not seed.isdigit():
            raise ValueError(f"{key}={path!r}: write random:SEED with a whole number.")
        metrics.say(
            f"{key}={path}: UNTRAINED weights, nothing can be learned from them"
        )
        return jax.device_get(jax.jit(fit(None))(jax.random.key(int(seed))))
    weights = rename(read(path, key))
    shapes = jax.eval_shape(fit(weights), jax.random.key(0))
    return graft(shapes, weights, grid=grid, **declared)
