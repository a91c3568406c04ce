# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the unit tests of models, weights and steps start from."""

import jax
import numpy as np

import runs
from g2sd_jax import optim, stages, step
from g2sd_jax.weights import torch_names


def images(config, count=4, seed=0):
    """[count, H, W, C] float32, which counts as prepared already."""
    shape = (count, *config.model.image_size, config.model.channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noisy(tree, seed=1, size=0.1):
    """The same tree moved a little, so that no bias is zero and no scale one."""
    rng = np.random.default_rng(seed)
    move = lambda leaf: leaf + size * rng.normal(size=leaf.shape).astype(leaf.dtype)
    return jax.tree.map(move, tree)


def apply(model, variables, *inputs):
    """One compiled program instead of one per operation."""
    return jax.jit(model.apply)(variables, *inputs)


def stage(name, **changes):
    """A tiny stage: its config, itself, and variables of seed 0."""
    config = runs.small(name, **changes)
    built = stages.build(config)
    init = jax.jit(lambda key: built.init(key, {}))
    return config, built, noisy(jax.device_get(init(jax.random.key(0))))


def optimiser(config, params, steps=100):
    """Its transformation and rate, and the state at step 0."""
    rate = optim.learning_rate(config.optim, 10, steps)
    tx = optim.build(config.optim, torch_names.names(params), rate)
    return tx, rate, step.new_state({"params": params}, tx)
