# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Strict grafting: every parameter found or fresh, every entry used or dropped."""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import core, metrics
from g2sd_jax.ops import patches, relative, resize
from g2sd_jax.weights import catalogue, loading, relative_tables, torch_names

# Of PyTorch's state dicts; the first has no use here, the second is a constant.
BUFFERS = (r".*\.num_batches_tracked", r".*\.relative_position_index")


def matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The names that one of the regexes matches whole."""
    return {name for name in names if any(re.fullmatch(p, name) for p in patterns)}


def onto(
    variables: Mapping,
    weights: loading.Weights,
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
    complaints = [f"missing: {core.few(missing)}"] * bool(missing)
    complaints += [f"not expected: {core.few(lost)}"] * bool(lost)
    complaints += [f"of another shape: {core.few(wrong)}"] * bool(wrong)
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
        f"{weights.source}: {len(found)} found, {len(keep)} fresh ({core.few(keep)}), "
        f"{len(spare)} dropped ({core.few(spare)})"
    )
    taken = {name: arrays[name] for name in found}
    return torch_names.from_torch(variables, taken)


def _others(shapes, keep, missing):
    """Which published files have what is missing, if any has this shape."""
    size = loading.named_size(shapes)
    if not missing or size not in catalogue.SIZES.values():
        return ""
    holds = "classifier" if "head.weight" in shapes.keys() - keep else "encoder"
    holds = "autoencoder" if "decoder_pred.weight" in shapes else holds
    return f" Published files that would do: {catalogue.would_do(holds, size)}."


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


def _grid_of(weights, count):
    """The grid a file was made for: as it says, else the square of so many patches."""
    return tuple(weights.describe.get("grid") or [round(count**0.5)] * 2)


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
        grid: as for `onto`.
        key: the config key to name in errors.
        rename: weights -> weights under the module's names, where a file's may differ.
        **declared: `fresh` and `dropped` of `onto`.
    """
    if path.startswith("random:"):
        seed = path.removeprefix("random:")
        if not seed.isdigit():
            raise ValueError(f"{key}={path!r}: write random:SEED with a whole number.")
        metrics.say(
            f"{key}={path}: UNTRAINED weights, nothing can be learned from them"
        )
        return jax.device_get(jax.jit(fit(None))(jax.random.key(int(seed))))
    weights = rename(loading.read(path, key))
    shapes = jax.eval_shape(fit(weights), jax.random.key(0))
    return onto(shapes, weights, grid=grid, **declared)
