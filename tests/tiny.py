# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the unit tests of models, weights and steps start from."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import runs
from g2sd_jax import optim, stages, step
from g2sd_jax.ops import patches
from g2sd_jax.weights import torch_names


def images(config, count=4, seed=0):
    """[count, H, W, C] float32, which counts as prepared already."""
    shape = (count, *config.model.image_size, config.model.channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normal(rng, *shape):
    """Float32 numbers of a normal distribution."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def noisy(tree, seed=1, size=0.1):
    """The same tree moved a little, so that no bias is zero and no scale one."""
    rng = np.random.default_rng(seed)
    move = lambda leaf: leaf + size * rng.normal(size=leaf.shape).astype(leaf.dtype)
    return jax.tree.map(move, tree)


def parameter_count(tree, *parts):
    """Parameters under the named parts of the top level; of all without any."""
    leaves = jax.tree.leaves([tree[part] for part in parts] if parts else tree)
    return sum(math.prod(leaf.shape) for leaf in leaves)


def parameter_shapes(init):
    """The parameters of `init`, a function of a key, without their numbers."""
    return jax.eval_shape(init, jax.random.key(0))["params"]


def masking(ids, total):
    """The masking that shows just the patches `ids`, in this order, of 4 pictures."""
    rest = [i for i in range(total) if i not in ids]
    restore = np.argsort([*ids, *rest])
    removed = np.array([i not in ids for i in range(total)], np.float32)
    one = patches.Masking(jnp.array(ids), jnp.array(restore), jnp.array(removed))
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), one)


def apply(model, variables, *inputs):
    """One compiled program instead of one per operation."""
    return jax.jit(model.apply)(variables, *inputs)


def stage(name, **changes):
    """A tiny stage: its config, itself, and variables of seed 0."""
    config = runs.small(name, **changes)
    built = stages.build(config)
    init = jax.jit(built.init)
    return config, built, noisy(jax.device_get(init(jax.random.key(0))))


def optimiser(config, params, steps=100):
    """Its transformation and rate, and the state at step 0."""
    rate = optim.learning_rate(config.optim, 10, steps)
    tx = optim.build(config.optim, torch_names.names(params), rate)
    return tx, rate, step.new_state({"params": params}, tx)
