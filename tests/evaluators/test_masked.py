# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What masked stages measure on the way: neighbours by hand, the loss one by one."""

import jax
import numpy as np
import pytest

import runs
import slow
from g2sd_jax import stages
from g2sd_jax.evaluators import masked
from g2sd_jax.ops import augment


def test_vote_by_hand():
    bank = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
    label = np.array([0, 1, 1, 2])
    asked = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    said = masked.vote(bank, label, asked, count=1, classes=3)
    assert said.tolist() == [0, 1, 2]
    # Of all four, the near one outweighs two that are far: exp(1 / 0.07) is large.
    said = masked.vote(bank, label, asked, count=4, classes=3)
    assert said.tolist() == [0, 1, 2]
    # At a high temperature the two of class 1 win.
    said = masked.vote(bank, label, asked, count=3, classes=3, temperature=10.0)
    assert said.tolist()[:2] == [1, 1]
    # Of a picture itself nobody asks: the second is the nearest of the first.
    said = masked.vote(bank, label, bank, count=1, classes=3, itself=False)
    assert said.tolist() == [1, 0, 1, 1]
    said = masked.vote(bank, label, bank, count=9, classes=3, itself=False)
    assert said.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "stage", slow.parameters(runs.MASKED, quick=["generic_distill"])
)
def test_validation_loss_counts_each_real_example_once(stage):
    config = runs.small(stage, monitor=dict(loss=True, neighbours=0, bank=40))
    built = stages.build(config)
    variables = jax.jit(built.init)(jax.random.key(0))
    frozen = built.frozen()
    frozen = built.trim(frozen) if frozen else {}
    evaluator = built.evaluators["val"]
    predict = jax.jit(evaluator.predict)
    state, means = evaluator.start(), []
    plain = augment.spec(config, train=False)
    for batch, examples in evaluator.batches():
        outputs = jax.device_get(predict(variables, frozen, batch))
        state = evaluator.update(state, outputs, examples)
        if len(examples) == config.batch:
            prepared = augment.prepare(batch, {}, plain)
            draws = built.draw(jax.random.key(0), prepared)
            params = variables["params"]
            loss, _ = jax.jit(built.loss)(params, {}, frozen, prepared, draws, 0)
            np.testing.assert_allclose(outputs["loss"].mean(), loss, rtol=1e-5)
            means.append(loss)
    assert state["count"] == 40 and len(means) == 2
    assert evaluator.finish(evaluator.merge([state, state])) == pytest.approx(
        evaluator.finish(state)
    )


def test_bank_is_the_same_in_every_evaluation():
    config = runs.small("pretrain", monitor=dict(loss=False, neighbours=3, bank=40))
    bank = masked.bank_of_config(config)
    assert bank.count == config.monitor.bank
    again = masked.bank_of_config(config)
    rows = np.arange(4)
    np.testing.assert_array_equal(bank.fetch(rows)["image"], again.fetch(rows)["image"])
    first = bank.original(0)["image"]
    np.testing.assert_array_equal(bank.fetch(rows)["image"][0], first)
