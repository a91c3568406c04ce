# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The contracts every other file is written against: stage, task, evaluator, state."""

import difflib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

# A run may be continued after these were changed: none of them changes a number beyond
# the rounding that another device layout brings. Everything else is refused by `train`.
MAY_CHANGE = (
    "mesh",
    "remat",
    "scan",
    "log_every",
    "shown",
    "checkpoint",
    "nonfinite",
    "cache_dir",
    "profile",
    "progress",
    "wandb",
    "data.workers",
    "data.prefetch",
    "data.max_bad_share",
    "data.timeout",
    "data.data_dir",
    "data.index_dir",
)


# How a process ends; what starts runs (a launcher, Slurm, a cluster) reads these.
EXIT_DONE = 0
EXIT_MISTAKE = 2  # One line says what is wrong; the same command fails again.
EXIT_AGAIN = 75  # Asked to stop, and saved: the same command resumes.
EXIT_LOST = 76  # Another process of the run, or its data: as after a crash of its own.
MISTAKES = (ValueError, OSError, FloatingPointError)  # What that one line is made of.


class Hung(OSError):
    """What was waited for did not come, and the threads at it can not be ended."""


class Preempted(Exception):
    """The run was asked to leave, and has saved its state."""


def nothing(*_args) -> dict:
    return {}


def identity(value):
    return value


def as_given(batch, _draws):
    return batch


class Stage(NamedTuple):
    """One training stage, described by the pure functions the one loop calls.

    A stage is data, after Optax's `GradientTransformation`: nothing is inherited, each
    function can be tested alone, and a variant is `stage._replace(loss=...)`.
    """

    init: Callable  # (key, batch) -> variables that are trained
    draw: Callable  # (key, batch) -> draws: [B, ...] arrays or scalars, by name
    loss: Callable  # (params, model_state, frozen, batch, draws, step) -> (loss, aux)
    frozen: Callable = dict  # () -> variables no optimiser may touch, loaded whole
    probe: Callable = nothing  # (frozen, batch) -> metrics, before step 0; may refuse
    trim: Callable = identity  # frozen -> what the loss needs of it, after the probe
    warm_start: Callable = identity  # variables -> variables of an earlier stage
    augment: Callable = (
        as_given  # (batch, draws) -> batch as `loss` sees it, to look at
    )
    evaluators: Mapping = {}  # name -> Evaluator
    describe: Mapping = {}  # what later commands need: architecture, classes, target


class Task(NamedTuple):
    """What fine-tuning and specific distillation of one downstream task share."""

    init: Callable  # (key, batch) -> variables
    draw: Callable  # (key, batch) -> draws, the augmentation's and the model's
    forward: Callable  # (variables, batch, draws) -> (outputs, model_state)
    terms: Callable  # (outputs, batch) -> {name: weighted scalar}
    augment: Callable  # (batch, draws) -> prepared batch
    evaluators: Mapping  # name -> Evaluator
    warm_start: Callable = identity  # variables -> variables of an earlier stage
    describe: Mapping = {}
    classes: Callable = tuple  # () -> names of the data's classes, () where unnamed


class Evaluator(NamedTuple):
    """A fold over the evaluation set: `predict` on the device, the rest on the host.

    `batches` yields `(batch, examples)`: a dict of equally padded arrays (`valid` [B]
    says which rows are real) and the host's own un-batched originals, one per valid row
    or whatever `update` needs to tell. `predict` may see one example several times.
    """

    batches: Callable[[], Iterable]
    predict: Callable  # (variables, frozen, batch) -> outputs, jitted by the caller
    start: Callable  # () -> state, a dict of numpy arrays
    update: Callable  # (state, outputs, examples) -> state, own examples only
    merge: Callable  # [state, ...] of all hosts -> state
    finish: Callable  # state -> {metric: float}; of `start()` the same names, NaN
    frozen: bool = False  # whether `predict` looks at what the stage froze
    confusion: Callable | None = None  # state -> [C, C] counts, one row per true class


class TrainState(flax.struct.PyTreeNode):
    """Arrays only: with `step` alone the keys and the data position are recovered."""

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        return {"params": self.params, **self.model_state}


def stream_keys(key: jax.Array, *names: str) -> dict[str, jax.Array]:
    """One key per purpose, folded from its name: a new purpose moves no other."""
    return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}


def total(terms: Mapping, model_state: Mapping, **metrics):
    """Sums weighted terms and logs each: the last line of every stage's loss.

    Args:
        terms: name -> weighted scalar.
        model_state: what the step leaves behind besides parameters (batch statistics).
        **metrics: further scalars to log as they are.
    Returns:
        `(loss, (model_state, metrics))`, each term logged as `loss/name`.
    """
    loss = sum(jnp.asarray(term, jnp.float32) for term in terms.values())
    logged = {f"loss/{name}": term for name, term in terms.items()}
    return loss, (model_state, {"loss": loss, **logged, **metrics})


def lookup(what: str, name: str, known: Mapping):
    """`known[name]`, or a `ValueError` that lists the nearest known names."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), list(map(str, known)), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "known:"
    listed = "" if near else " " + ", ".join(map(str, known))
    raise ValueError(f"{what}={name!r} is not known; {hint}{listed}")


def one_of(what: str, value: str, allowed: Iterable[str]) -> str:
    """`value` itself if it is among `allowed`, else the error of `lookup`."""
    return lookup(what, value, {name: name for name in allowed})


def few(names: Iterable[str], most: int = 4, between: str = ", ") -> str:
    """The first names in sorted order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def require(config, where: str, keys: Iterable[str], because: str) -> None:
    """Refuses a recipe that lacks keys which the value of another one asks for.

    Args:
        config: the group of keys, such as `config.optim`.
        where: its name, for the error.
        keys: what it must have.
        because: the choice that reads them, and where a recipe with them is found.
    """
    missing = [f"{where}.{key}" for key in keys if key not in config]
    if missing:
        raise ValueError(
            f"this recipe has no {', '.join(missing)}, which {because} reads; start "
            "from a recipe that has them, or add them to yours."
        )


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """A nested dict as `{"a.b": leaf}`, in sorted order."""
    flat = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
