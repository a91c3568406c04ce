# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation split and its batches, as an evaluator asks for them."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
from ml_collections import ConfigDict

from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order, source


def eval_split(
    config: ConfigDict, reads: Sequence[str] = ()
) -> Callable[[], datasets.Dataset]:
    """() -> the evaluation split, which is loaded at the first call.

    Args:
        config: the recipe.
        reads: batch keys beside `image` that are needed, as in `core.Stage.reads`.
    """
    return functools.cache(
        lambda: source.load(config, config.data.eval_split, reads, evaluate=True)
    )


def eval_batches(
    config: ConfigDict, reads: Sequence[str] = ()
) -> Callable[[], Iterator]:
    """() -> this process's share of the batches of the evaluation split."""
    return batches_from(eval_split(config, reads), config)


def batches_from(
    dataset: Callable[[], datasets.Dataset], config: ConfigDict
) -> Callable[[], Iterator]:
    """() -> this process's share of the batches of `dataset()`."""

    def batches():
        hosts = jax.process_index(), jax.process_count()
        return order.eval_batches(dataset(), config.batch, *hosts)

    return batches
