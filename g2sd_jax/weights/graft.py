# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Strict loading of weights into a parameter tree.

Every parameter is loaded or declared fresh, every entry used or declared dropped.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import core, errors, parallel
from g2sd_jax.configs import ranges
from g2sd_jax.models import variants
from g2sd_jax.ops import relative, resize
from g2sd_jax.weights import (
    catalogue,
    grids,
    loading,
    parts,
    relative_tables,
    torch_names,
)


def matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The names that one of the regexes matches in full."""
    patterns = tuple(patterns)
    return {name for name in names if any(re.fullmatch(p, name) for p in patterns)}


def onto(
    variables: Mapping,
    weights: loading.Weights,
    *,
    grid: tuple[int, int],
    fresh: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> dict:
    """Loads `weights` into `variables`, strictly both ways.

    Args:
        variables: {"params": ...} and perhaps batch statistics, arrays or shapes.
        weights: of a file or a run.
        grid: (rows, columns) of patches of the target. Tables of another grid are
            resized: trained positions by bicubic interpolation, relative ones by a
            spline, class rows untouched. A sin-cos table that the target does not store
            is checked and left out.
        fresh: regexes of names that stay as initialised, whatever the file holds.
        dropped: regexes of names of the file that are not needed.
    Returns:
        A tree like `variables`; the fresh leaves are those of `variables`.
    Raises:
        ValueError: a parameter is neither in the file nor declared fresh, an entry
            neither used nor declared dropped, or a shape differs; all are listed.
    """
    shapes = torch_names.shapes(variables)
    fresh_names = matching(shapes, fresh)
    arrays = {
        name: _fitted(name, array, shapes[name], weights, grid)
        if name in shapes and name not in fresh_names
        else array
        for name, array in weights.arrays.items()
    }
    loaded = {n for n in shapes if n in arrays and n not in fresh_names}
    constant = {n for n in arrays if n.endswith("pos_embed") and n not in shapes}
    constant -= matching(constant, dropped)
    unused = set(arrays) - loaded - constant
    unexpected = unused - matching(unused, [*dropped, *fresh, *parts.BUFFERS])
    missing = set(shapes) - loaded - fresh_names
    misshapen = [
        f"{name} is {arrays[name].shape}, expected {shapes[name]}"
        for name in sorted(loaded)
        if arrays[name].shape != shapes[name]
    ]
    faults = {
        "missing": missing,
        "not expected": unexpected,
        "of another shape": misshapen,
    }
    complaints = [
        f"{fault}: {errors.shorten_list(names)}"
        for fault, names in faults.items()
        if names
    ]
    if complaints:
        raise ValueError(
            f"{weights.source} does not fit ({'; '.join(complaints)}). It holds "
            f"{weights.summary()}; check the path, and config.model or "
            f"config.teacher.model against it."
            f"{_published_files(shapes, fresh_names, missing)}"
        )
    for name in constant:
        _check_constant(name, arrays[name], grid, weights)
    for name in matching(arrays, parts.BUFFERS[1:]):
        _check_index(name, arrays[name], weights)
    parallel.print_once(
        f"{weights.source}: {len(loaded)} found, {len(fresh_names)} fresh "
        f"({errors.shorten_list(fresh_names)}), {len(unused)} dropped "
        f"({errors.shorten_list(unused)})"
    )
    return torch_names.from_torch(variables, {name: arrays[name] for name in loaded})


def _published_files(shapes: Mapping, fresh_names: set[str], missing: set[str]) -> str:
    """A sentence that names published files with the missing parts, or ""."""
    size = loading.named_size(shapes)
    if not missing or size not in catalogue.SIZES.values():
        return ""
    holds = "classifier" if "head.weight" in shapes.keys() - fresh_names else "encoder"
    holds = "autoencoder" if "decoder_pred.weight" in shapes else holds
    return f" Published files that would do: {catalogue.suggestions(holds, size)}."


def _fitted(
    name: str,
    table: np.ndarray,
    wanted: tuple[int, ...],
    weights: loading.Weights,
    grid: tuple[int, int],
) -> np.ndarray:
    """Resizes a table of positions to `grid`; any other array stays as it is.

    Raises:
        ValueError: it is not known for which grid a table was trained, or it has not
            the rows that this grid needs.
    """
    absolute = name.endswith("pos_embed") and table.shape[2:] == wanted[2:]
    if absolute:
        prefix = wanted[1] - grid[0] * grid[1]  # The class token's row, if it has one.
        rows = lambda grid: grid[0] * grid[1] + prefix
        length, fit = table.shape[1], resizing(weights, prefix)
    elif name.endswith(grids.BIASES) and table.shape[1:] == wanted[1:]:
        rows, length, fit = relative.rows, len(table), relative_tables.resize
    else:
        return table  # Not a matter of the grid; the shapes are compared later.
    stated = grids.stated(weights.arrays, weights.describe)
    if stated is None and grid[0] != grid[1]:
        raise ValueError(
            f"{weights.source} does not say for which grid of patches {name} "
            f"{table.shape} was trained, and the model's {grid[0]}x{grid[1]} is no "
            f"square; {grids.HOW_TO_TELL}."
        )
    theirs = stated or grids.likely(weights.arrays, weights.describe)
    if theirs and rows(theirs) == length:
        return np.asarray(fit(table, theirs, grid))
    if theirs is None and table.shape != wanted:
        return table
    reason = f"a grid of {theirs[0]}x{theirs[1]}" if theirs else "a square grid"
    no_class = absolute and (
        length == theirs[0] * theirs[1] if theirs else not grids.has_class_row(table)
    )
    raise ValueError(
        f"{weights.source}: {name} {table.shape} is no table of {reason}"
        + (", for it has no row for the class token" if no_class else "")
        + f". If its grid is another one, {grids.HOW_TO_TELL}."
    )


def resizing(weights: loading.Weights, prefix: int) -> Callable[..., np.ndarray]:
    """(table, its grid, wanted grid) -> the table, resized as it was in its training.

    Args:
        weights: whose description may name one of `resize.TABLES`.
        prefix: rows before those of the grid.
    """
    variant = weights.describe.get("model", {}).get("variant") or {}
    how = variant.get("resize", variants.PLAIN.resize)
    return functools.partial(resize.resize_pos_embed, how=how, prefix=prefix)


def _check_index(name: str, index: np.ndarray, weights: loading.Weights) -> None:
    """Refuses relative positions that are numbered in another order."""
    stated = grids.stated(weights.arrays, weights.describe)
    theirs = stated or (math.isqrt(len(index) - 1),) * 2
    if not np.array_equal(index, relative.index(theirs)):
        raise ValueError(
            f"{weights.source}: {name} {index.shape} does not number the offsets of a "
            f"{theirs[0]}x{theirs[1]} grid as here: row offsets slowest, then three "
            "for the class token. Its tables would be read wrongly."
        )


def _check_constant(
    name: str, table: np.ndarray, grid: tuple[int, int], weights: loading.Weights
) -> None:
    """Refuses a table of positions that a masked autoencoder does not store."""
    if not grids.is_sincos(table, grid):
        raise ValueError(
            f"{weights.source}: {name} {table.shape} is not the sin-cos table of a "
            f"{grid[0]}x{grid[1]} grid; a masked autoencoder here has no other. Check "
            "config.model.image_size and patch (or config.teacher.model)."
        )


def load_variables(
    path: str,
    fit: Callable[[loading.Weights | None], Callable[[jax.Array], dict]],
    *,
    grid: tuple[int, int],
    key: str = "config.teacher.checkpoint",
    rename: Callable[[loading.Weights], loading.Weights] = core.identity,
    **declared: Sequence[str],
) -> dict:
    """Loads frozen variables from a workdir, a file, or `random:SEED`.

    Args:
        path: the value of `key`.
        fit: weights (None for random ones) -> the `init` (key -> variables) of the
            module to load them into; raises if they can not serve.
        grid: as for `onto`.
        key: the config key to name in errors.
        rename: weights -> weights with the module's names, where a file's may differ.
        **declared: `fresh` and `dropped` of `onto`.
    """
    if path.startswith("random:"):
        seed = path.removeprefix("random:")
        if not re.fullmatch("[0-9]{1,10}", seed) or int(seed) > ranges.SEED.high:
            raise ValueError(
                f"{key}={path!r}: write random:SEED with a whole number of at most "
                f"{ranges.SEED.high}."
            )
        parallel.print_once(
            f"{key}={path}: UNTRAINED weights, nothing can be learned from them"
        )
        return jax.device_get(jax.jit(fit(None))(jax.random.key(int(seed))))
    weights = rename(loading.read(path, key))
    shapes = jax.eval_shape(fit(weights), jax.random.key(0))
    return onto(shapes, weights, grid=grid, **declared)
