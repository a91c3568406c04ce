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
from g2sd_jax.ops import patches, relative, resize
from g2sd_jax.weights import catalogue, importers, relative_tables, torch_names

FOLDER = "checkpoints"
# Of PyTorch's state dicts; the first has no use here, the second is a constant.
BUFFERS = (r".*\.num_batches_tracked", r".*\.relative_position_index")
CONV_SEG = "decode_head.conv_seg"


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

    def restore_variables(self) -> tuple[dict, dict]:
        """Variables as numpy and the description, without knowing the config."""
        step = self.latest()
        tree = self._orbax.item_metadata(step)["state"].tree
        held = {key: tree[key] for key in ("params", "model_state") if tree.get(key)}
        wanted = jax.tree.map(lambda _: 0, held)
        numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(lambda _: numpy, wanted),
            partial_restore=True,
        )
        items = ocp.args.Composite(state=args, describe=ocp.args.JsonRestore())
        found = self._orbax.restore(step, args=items)
        variables = {"params": found["state"].pop("params")}
        return variables | found["state"].get("model_state", {}), found["describe"]

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
    if os.path.isfile(path) or importers.is_directory(path):
        arrays, describe = importers.read(path, key)
        return Weights(path, arrays, describe)
    variables, describe = _restored(path, key)
    grid = describe["grid"] if describe.get("kind") == "mae" else None
    return Weights(path, torch_names.to_torch(variables, grid), describe)


def _restored(path: str, key: str) -> tuple[dict, dict]:
    """Variables and description of the newest checkpoint of the workdir `path`."""
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
        return manager.restore_variables()
    finally:
        manager.close()


def run_variables(path: str, shapes: Mapping, key: str) -> tuple[dict, dict]:
    """All variables of a run as they are, and its description.

    Args:
        path: a workdir.
        shapes: what the run's stage starts from; the variables must be shaped alike.
        key: the option to name in errors.
    """
    variables, describe = _restored(path, key)
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
