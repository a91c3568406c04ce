# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every platform's form of attention is the same function, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g2sd_jax.ops import attention
from golden_files import agree

FORMS = {
    "cpu": attention.heads_first,
    "default": attention.tokens_first,
    "tpu": attention.head_by_head,
    "chosen": attention.attention,
}


def plain(q, k, v, bias=0.0):
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]) + bias
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.fixture
def qkv(rng):
    return [rng.normal(size=(2, 7, 3, 4)) for _ in range(3)]


@pytest.fixture
def biased(qkv, rng):
    return [*qkv, rng.normal(size=(3, 7, 7))]


@pytest.mark.parametrize("form", FORMS)
def test_values(form, qkv, biased):
    for given in (qkv, biased):
        got = FORMS[form](*(jnp.asarray(x, jnp.float32) for x in given))
        agree(got, plain(*given), form, 1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inputs", ["qkv", "biased"])
def test_gradients_by_differences(form, inputs, request):
    inputs = request.getfixturevalue(inputs)

    def loss(*inputs):
        return jnp.sin(FORMS[form](*inputs)).sum()

    single = [jnp.asarray(x, jnp.float32) for x in inputs]
    grads = jax.grad(loss, argnums=tuple(range(len(single))))(*single)
    for which in range(len(inputs)):
        for at in ((0, 0, 0, 0), (1, 6, 2, 3), (0, 3, 1, 2)):
            at = at if which < 3 else (at[2], at[1], at[3])
            sides = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in inputs]
                moved[which][at] += step
                sides.append(np.sin(plain(*moved)).sum())
            slope = (sides[0] - sides[1]) / 2e-5
            assert float(grads[which][at]) == pytest.approx(slope, abs=1e-5)


def test_forms_by_platform():
    """The maps of all heads of a long sequence do not fit a TPU's chip."""
    assert attention.choose("cpu", 197) == "heads"
    assert [attention.choose("tpu", tokens) for tokens in (50, 197)] == ["xla", "loop"]
    assert attention.choose("cuda", 197) == "xla"


def test_what_cudnn_can_not_do_is_told(qkv):
    single = [jnp.asarray(x, jnp.float32) for x in qkv]
    with pytest.raises(ValueError, match="cuDNN is for NVIDIA GPUs, and this is a cpu"):
        attention.attention(*single, form="cudnn")


def test_large_logits_stay_finite(qkv):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv)
    loss = lambda q: attention.heads_first(1e4 * q, k, v).sum()
    assert np.isfinite(jax.grad(loss)(q)).all()


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_keeps_its_softmax_in_float32(form, qkv):
    # With a bfloat16 softmax the weights alone would be off by a part in 256.
    half = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    got = FORMS[form](*half)
    assert got.dtype == jnp.bfloat16
    exact = plain(*(np.asarray(x, np.float64) for x in half))
    agree(got, exact, form, 8e-3)
