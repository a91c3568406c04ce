# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The contracts every other file is written against: stage, task, evaluator, state."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax
import jax
import jax.numpy as jnp
import numpy as np

# A run may be continued after these were changed: none of them changes a number beyond
# the rounding that another device layout brings. Everything else is refused by `train`.
MAY_CHANGE = (
    "mesh",
    "remat",
    "scan",
    "attention",
    "log_every",
    "first_batch_images",
    "checkpoint",
    "nonfinite",
    "cache_dir",
    "profile",
    "progress",
    "wandb",
    "optim.base_lr",  # What comes of it, optim.lr, may not.
    "data.assumed",
    "data.workers",
    "data.prefetch",
    "data.max_bad_share",
    "data.timeout",
    "data.data_dir",
    "data.index_dir",
)
# A run may be continued to a later end than it was begun with, never to an earlier one:
# the steps that are made stay as they are, the schedule of the others is another.
MAY_GROW = ("total_steps", "total_epochs")


T = TypeVar("T")


class Picture(NamedTuple):
    """How the sheet of the first batch shows one example."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    beside: np.ndarray | None = None  # [H, W, 3] uint8 RGB, drawn on its right
    caption: str = ""  # At most two lines.
    legend: Sequence[tuple[int, str]] = ()  # (label, name), in `palette.colours`


def no_metrics(*_args: object) -> dict:
    return {}


def no_lines(*_args: object) -> list[str]:
    return []


def identity(value: T) -> T:
    return value


def keep_batch(batch: Mapping, _draws: Mapping) -> Mapping:
    return batch


class Chance(NamedTuple):
    """The value of a metric for a model that knows nothing, to compare a run with."""

    value: float
    warning: Callable[[float], str]  # the run's value -> a sentence for its user
    higher_is_better: bool = False
    unit: str = ""
    metric: str = ""  # of `probe`, if it measures on the batch what replaces `value`


def show_image(example: Mapping, _classes: Sequence[str]) -> Picture:
    return Picture(example["image"])


class Stage(NamedTuple):
    """One training stage, described by the pure functions the one loop calls.

    A stage is data, after Optax's `GradientTransformation`: nothing is inherited, each
    function can be tested alone, and a variant is `stage._replace(loss=...)`.

    `augment` is idempotent: a batch that it returned, recognised by its `image` in
    floating point (and its `target`), comes back as it is, so `loss` takes either.
    """

    init: Callable  # (key) -> variables that are trained
    draw: Callable  # (key, batch) -> draws: [B, ...] arrays or scalars, by name
    loss: Callable  # (params, model_state, frozen, batch, draws, step) -> (loss, aux)
    frozen: Callable = dict  # () -> variables no optimiser may touch, loaded whole
    probe: Callable = (
        no_metrics  # (frozen, batch) -> metrics, before step 0; may refuse
    )
    trim: Callable = identity  # frozen -> what the loss needs of it, after the probe
    warm_start: Callable = identity  # variables -> variables of an earlier stage
    augment: Callable = keep_batch  # (batch, draws) -> batch as `loss` sees it
    evaluators: Mapping = {}  # name -> Evaluator
    classes: Callable = tuple  # () -> names of the classes judged, () where unnamed
    describe: Mapping = {}  # what later commands need: architecture, classes, target
    chance: Mapping[str, Chance] = {}  # by metric of `probe` or of `loss`
    reads: Sequence[str] = ()  # batch keys beside `image` that the source has to give
    picture: Callable = show_image  # (augmented example, class names) -> Picture
    summarise: Callable = no_lines  # (dataset, batch) -> lines; called on every host
    indivisible: str | None = None  # a clause: why no micro-batches; None: divisible
    group: int = 1  # neighbouring rows whose terms have one divisor: never divided


class Task(NamedTuple):
    """What fine-tuning and specific distillation of one downstream task share.

    Fields that `Stage` has too mean what they mean there.
    """

    init: Callable  # (key) -> variables
    draw: Callable  # (key, batch) -> draws, the augmentation's and the model's
    forward: Callable  # (variables, batch, draws) -> (outputs, model_state)
    terms: Callable  # (outputs, batch) -> {name: weighted scalar}
    augment: Callable  # (batch, draws) -> prepared batch; idempotent
    evaluators: Mapping  # name -> Evaluator
    reads: Sequence[str] = ()  # batch keys beside `image`
    picture: Callable = show_image  # (augmented example, class names) -> Picture
    summarise: Callable = no_lines  # (dataset, batch) -> lines
    indivisible: str | None = None  # a clause: why no micro-batches; None: divisible
    group: int = 1  # neighbouring rows whose terms have one divisor: never divided
    warm_start: Callable = identity  # variables -> variables of an earlier stage
    describe: Mapping = {}
    classes: Callable = tuple  # () -> names of the data's classes, () where unnamed
    chance: Mapping[str, Chance] = {}  # by name of a term
    metrics: Callable = no_metrics  # (outputs, batch) -> scalars to log


class Score(NamedTuple):
    """A metric of an evaluator that says how good a model is, as people read it."""

    key: str  # among the evaluator's metrics, such as top1
    name: str  # in tables, such as top-1
    unit: str = "%"  # "" where it has none
    higher_is_better: bool = True
    chance: float | None = None  # for answers that ignore the input; None: unknown
    count: str = ""  # the metric that counts the scored items
    counted: str = ""  # what those items are, such as held-out examples


class Column(NamedTuple):
    """A column of a `Table`."""

    key: str  # in every row
    name: str  # in the header
    unit: str = ""
    printed: bool = True  # False: on pages only


class Table(NamedTuple):
    """Figures of an evaluator by class, or by anything else its examples have.

    The rows of a table with columns are mappings; those of a table without are the rows
    of a matrix of counts. Cells are text, whole numbers, floats, or None.
    """

    key: str  # of the rows in a file of figures, such as classes
    title: str
    rows: Sequence
    columns: Sequence[Column] = ()
    worst: str = ""  # the column that chooses which rows are printed of many
    worst_is: str = "lowest"  # lowest, highest
    percent: bool = False  # whether a matrix is printed in % of the sum of each row


def no_tables(_state: Mapping, _names: Sequence[str]) -> tuple[()]:
    return ()


class Evaluator(NamedTuple):
    """A fold over the evaluation set: `predict` on the device, the rest on the host.

    `batches` yields `(batch, examples)`: a dict of equally padded arrays (`valid` [B]
    marks the real rows) and this host's un-batched originals, one per valid row or
    whatever `update` compares with. `predict` may see one example several times.
    """

    batches: Callable[[], Iterable]
    predict: Callable  # (variables, frozen, batch) -> outputs, jitted by the caller
    start: Callable  # () -> state, a dict of numpy arrays
    update: Callable  # (state, outputs, examples) -> state, own examples only
    merge: Callable  # [state, ...] of all hosts -> state
    finish: Callable  # state -> {metric: float}; of `start()` the same names, NaN
    frozen: bool = False  # whether `predict` reads the frozen variables
    scores: Sequence[Score] = ()  # of the metrics; the first one ranks models
    tables: Callable = no_tables  # (state, class names or ()) -> tables
    rate_unit: str = "images"  # what a valid row of a batch is, counted per second

    @property
    def score(self) -> Score | None:
        """The metric that ranks models; None of an evaluator that ranks nothing."""
        return next(iter(self.scores), None)


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


def total(
    terms: Mapping[str, jax.Array], model_state: Mapping, **metrics: jax.Array
) -> tuple[jax.Array, tuple[Mapping, dict[str, jax.Array]]]:
    """Sums weighted terms and logs each: the last line of every stage's loss.

    Args:
        terms: name -> weighted scalar.
        model_state: the variables beside parameters after this step (batch statistics).
        **metrics: further scalars to log as they are.
    Returns:
        `(loss, (model_state, metrics))`, each term logged as `loss/name`.
    """
    loss = sum(jnp.asarray(term, jnp.float32) for term in terms.values())
    logged = {f"loss/{name}": term for name, term in terms.items()}
    return loss, (model_state, {"loss": loss, **logged, **metrics})
