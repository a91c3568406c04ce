# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Attention with relative positions: in parts, as all at once, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from g2sd_jax.ops import windows


def plainly(q, k, v, rows, columns):
    """Every pair of tokens at once."""
    _, height, width, _, channels = q.shape
    logits = jnp.einsum("bijhd,bklhd->bhijkl", q, k) / channels**0.5
    index = lambda n: np.arange(n)[:, None] - np.arange(n)[None] + n - 1
    logits += jnp.einsum("bijhd,ikd->bhijk", q, rows[index(height)])[..., None]
    logits += jnp.einsum("bijhd,jld->bhijl", q, columns[index(width)])[..., None, :]
    weights = jax.nn.softmax(logits.reshape(*logits.shape[:4], -1), axis=-1)
    return jnp.einsum("bhijkl,bklhd->bijhd", weights.reshape(logits.shape), v)


def test_parts_are_the_same_as_all_at_once(rng):
    x = [tiny.normal(rng, 2, 6, 5, 2, 4) for _ in range(4)]
    tables = tiny.normal(rng, 11, 4), tiny.normal(rng, 9, 4)

    def gradient(function):
        score = lambda *args: (function(*args) * x[3]).sum()
        both = lambda *args: (function(*args), jax.grad(score, range(5))(*args))
        return jax.jit(both)(*x[:3], *tables)

    wanted = gradient(plainly)
    for most in (30, 10, 5):  # All rows, two rows, one row at a time.
        part = lambda *args, most=most: windows.attention(*args, most)
        looped = "scan" in str(jax.make_jaxpr(part)(*x[:3], *tables))
        assert looped == (most < 30)
        near = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
        jax.tree.map(near, gradient(part), wanted)
