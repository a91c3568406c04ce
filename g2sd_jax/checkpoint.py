# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's own checkpoints, and strict loading of anybody's weights."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from g2sd_jax import core, metrics
from g2sd_jax.models import mae, vit
from g2sd_jax.ops import patches, resize
from g2sd_jax.weights import catalogue, importers, torch_names

FOLDER = "checkpoints"


class Manager:
    """Orbax's manager of `workdir/checkpoints`: the state and its description."""

    def __init__(self, workdir: str, keep: int | None = None):
        folder = os.path.join(os.path.abspath(workdir), FOLDER)
        self._orbax = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_handlers=dict(
                state=ocp.PyTreeCheckpointHandler(),
                describe=ocp.JsonCheckpointHandler(),
            ),
        )

    def latest(self) -> int | None:
        return self._orbax.latest_step()

    def save(self, step: int, state: core.TrainState, describe: Mapping) -> None:
        if step in self._orbax.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            describe=ocp.args.JsonSave(dict(describe)),
        )
        self._orbax.save(step, args=items)

    def restore(self, abstract: core.TrainState) -> core.TrainState:
        """The newest state, placed as the `ShapeDtypeStruct`s of `abstract` say."""
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        )
        items = ocp.args.Composite(state=args)
        return self._orbax.restore(self.latest(), args=items)["state"]

    def restore_params(self) -> tuple[dict, dict]:
        """Parameters as numpy and the description, without knowing the config."""
        found, describe = self._restore_parts("params")
        return found["params"], describe

    def restore_variables(self) -> tuple[dict, dict]:
        """The same with the model's state (batch statistics), as a model takes them."""
        found, describe = self._restore_parts("params", "model_state")
        return {"params": found["params"], **found["model_state"]}, describe

    def _restore_parts(self, *parts):
        step = self.latest()
        held = self._orbax.item_metadata(step)["state"].tree
        wanted = {part: jax.tree.map(lambda _: 0, held[part]) for part in parts}
        numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(lambda _: numpy, wanted),
            partial_restore=True,
        )
        items = ocp.args.Composite(state=args, describe=ocp.args.JsonRestore())
        found = self._orbax.restore(step, args=items)
        return found["state"], found["describe"]

    def close(self) -> None:
        self._orbax.wait_until_finished()
        self._orbax.close()


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
        width, depth = _encoder({name: a.shape for name, a in self.arrays.items()})
        parts = [f"an encoder of {depth} blocks, width {width or '?'}"]
        parts += ["a decoder"] if self.has_decoder else ["no decoder"]
        if "head.weight" in self.arrays:
            parts.append(f"a head of {self.arrays['head.weight'].shape[0]} classes")
        kernel = self.arrays.get("patch_embed.proj.weight")
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
    if os.path.isfile(path) or importers.is_directory(path):
        arrays, describe = importers.read(path, key)
        return Weights(path, arrays, describe)
    params, describe = _restored(path, key, Manager.restore_params)
    grid = describe["grid"] if describe.get("kind") == "mae" else None
    return Weights(path, torch_names.to_torch(params, grid), describe)


def _restored(path: str, key: str, restore: Callable):
    """What `restore` takes from the newest checkpoint of the workdir `path`."""
    if not os.path.isdir(path):
        raise ValueError(f"{key}={path!r} does not exist; name a workdir or a file.")
    if not os.path.isdir(os.path.join(path, FOLDER)):
        raise ValueError(
            f"{key}={path!r} is not a workdir: it has no folder {FOLDER}/; name the "
            "--workdir of a finished run, a weight file, or a directory of timm or "
            "transformers (with config.json and model.safetensors)."
        )
    manager = Manager(path)
    try:
        if manager.latest() is None:
            raise ValueError(f"{key}={path!r} holds no complete checkpoint yet.")
        return restore(manager)
    finally:
        manager.close()


def run_variables(path: str, shapes: Mapping, key: str) -> tuple[dict, dict]:
    """All variables of a run as they are, and its description.

    Args:
        path: a workdir.
        shapes: what the run's stage starts from; the variables must be shaped alike.
        key: the option to name in errors.
    """
    variables, describe = _restored(path, key, Manager.restore_variables)
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


def check_classes(weights: Weights, names: Sequence[str], key: str) -> None:
    """Refuses a head whose classes are others than the data's, or in another order.

    Foreign files do not name theirs, nor do some data sets.
    """
    theirs = tuple(weights.describe.get("class_names") or ())
    names = tuple(names)
    if not theirs or not names or theirs == names:
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
    """`variables` with their parameters taken from `weights`, strictly both ways.

    Args:
        variables: {"params": ...}, arrays or shapes; a fresh parameter is kept.
        weights: what to take them from.
        grid: (rows, columns) of patches of the target. A trained position table of
            another grid is resized (bicubic, class row untouched); a sin-cos table the
            target does not store is checked and left out.
        fresh: regexes of names that stay as initialised, whatever the file holds.
        dropped: regexes of names of the file that are not needed.
    Raises:
        ValueError: a parameter is neither found nor declared fresh, an entry neither
            used nor declared dropped, or a shape differs; all are listed.
    """
    shapes = torch_names.shapes(variables["params"])
    arrays = dict(weights.arrays)
    if "pos_embed" in shapes and "pos_embed" in arrays:
        arrays["pos_embed"] = _fit_table(arrays["pos_embed"], shapes, weights, grid)
    keep = matching(shapes, fresh)
    found = {n for n in shapes if n in arrays and n not in keep}
    constant = {n for n in arrays if n.endswith("pos_embed") and n not in shapes}
    constant -= matching(constant, dropped)
    spare = set(arrays) - found - constant
    lost = spare - matching(spare, [*dropped, *fresh])
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
    metrics.say(
        f"{weights.source}: {len(found)} found, {len(keep)} fresh ({_few(keep)}), "
        f"{len(spare)} dropped ({_few(spare)})"
    )
    taken = {name: arrays[name] for name in found}
    return {**variables, "params": torch_names.from_torch(variables["params"], taken)}


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


def _fit_table(table, shapes, weights, grid):
    if table.shape == shapes["pos_embed"]:
        return table
    rows = weights.describe.get("grid") or [round((table.shape[1] - 1) ** 0.5)] * 2
    if (
        rows[0] * rows[1] + 1 != table.shape[1]
        or table.shape[2:] != (shapes["pos_embed"][2:])
    ):
        return table  # Not a matter of the grid; the shapes are compared below.
    return np.asarray(resize.resize_pos_embed(table, tuple(rows), grid))


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
    **declared,
) -> dict:
    """Frozen variables from a workdir, a file, or `random:SEED`.

    Args:
        path: the value of `key`.
        fit: weights (None for random ones) -> the `init` (key -> variables) of the
            module that they have to fill; raises if they can not serve.
        grid: as for `graft`.
        key: the config key to name in errors.
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
    weights = read(path, key)
    shapes = jax.eval_shape(fit(weights), jax.random.key(0))
    return graft(shapes, weights, grid=grid, **declared)
