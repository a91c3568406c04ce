# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The tests check annotated shapes and dtypes; outside of them nothing does."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import layers, vit
from g2sd_jax.ops import attention, patches

ROOT = pathlib.Path(__file__).resolve().parents[1]


def block(x):
    module = layers.Block(heads=2, mlp_ratio=2.0, kernel_init=layers.normal02)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), x, None))


WRONG = {
    "rank": lambda: patches.patchify(jnp.zeros((4, 4, 3)), 2),
    "shape": lambda: cross_entropy.soft(jnp.zeros((2, 3)), jnp.zeros((2, 4))),
    "batch": lambda: cross_entropy.hard(jnp.zeros((2, 3)), jnp.zeros(3, int)),
    "float dtype": lambda: attention.attention(*3 * [jnp.zeros((1, 2, 3, 4), int)]),
    "int dtype": lambda: cross_entropy.hard(jnp.zeros((2, 3)), jnp.zeros(2)),
    "traced": lambda: jax.jit(distill.soft_kl, static_argnames="temperature")(
        jnp.zeros((2, 3)), jnp.zeros((2, 4)), temperature=1.0
    ),
    "mapped": lambda: jax.vmap(cross_entropy.soft)(
        jnp.zeros((2, 3)), jnp.zeros((2, 3))
    ),
    "module's input": lambda: block(jnp.zeros((2, 3))),
    "module's field": lambda: vit.Vit(
        width="16", depth=2, heads=2, patch=4, image_size=(8, 8)
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_refused(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_right_arguments_pass():
    assert block(jnp.zeros((2, 3, 4)))
    assert jax.vmap(cross_entropy.soft)(*2 * [jnp.zeros((5, 2, 3))]).shape == (5,)


UNCHECKED = """
import sys
from g2sd_jax import stages
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import vit
from g2sd_jax.ops import patches

functions = cross_entropy.soft, vit.embed, patches.mask
assert not any(hasattr(function, "__wrapped__") for function in functions)
assert not {"beartype", "typeguard"} & set(sys.modules)
"""


def test_without_the_tests_nothing_is_checked():
    command = [sys.executable, "-c", UNCHECKED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
