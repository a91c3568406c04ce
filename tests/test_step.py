# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Micro-batches that add up to the batch, and steps that must not happen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from g2sd_jax import core, step
from g2sd_jax.ops import mixup


@pytest.mark.parametrize(("count", "parts"), [(16, 1), (16, 2), (24, 3), (32, 4)])
def test_micro_batches_hold_their_partners_reversed(count, parts):
    rows = step.split_batch(np.arange(count), parts)
    assert rows.shape == (parts, count // parts)
    assert sorted(rows.ravel()) == list(range(count))
    np.testing.assert_array_equal(rows[:, ::-1], count - 1 - rows)
    # Each device's contiguous share of the batch gives the same number to each part.
    shares = [set(share) for share in np.split(np.arange(count), count // (2 * parts))]
    for part in rows:
        assert {len(share & set(part)) for share in shares} == {2}


def test_odd_micro_batches_are_dealt_out():
    rows = step.split_batch(np.arange(9), 3)
    np.testing.assert_array_equal(rows, [[0, 3, 6], [1, 4, 7], [2, 5, 8]])


@pytest.mark.parametrize("boxed", [False, True])
def test_mixing_after_the_split_equals_mixing_before(rng, boxed):
    image = jnp.asarray(rng.normal(size=(12, 6, 6, 1)), jnp.float32)
    draws = dict(mix_lam=0.6, mix_cutmix=boxed, mix_centre_y=2, mix_centre_x=3)
    draws = {key: jnp.asarray(value) for key, value in draws.items()}
    mixed = mixup.mix(image, jnp.eye(12), draws)
    for micro, whole in zip(
        jax.vmap(lambda x, y: mixup.mix(x, y, draws))(
            step.split_batch(image, 3), step.split_batch(jnp.eye(12), 3)
        ),
        mixed,
        strict=True,
    ):
        split = step.split_batch(whole, 3)
        np.testing.assert_allclose(micro, split, atol=1e-6)


@pytest.fixture(scope="module")
def finetune():
    """A stage that mixes, with a batch, draws, and the gradient of the whole batch."""
    config, stage, variables = tiny.stage("finetune")
    batch = {"image": tiny.images(config, 8), "label": np.arange(8, dtype=np.int32) % 5}
    draws = stage.draw(jax.random.key(3), batch)
    assert "mix_lam" in draws
    return config, stage, variables, batch, draws


def test_accumulated_equals_undivided(finetune):
    _, stage, variables, batch, draws = finetune

    def part(batch, draws):
        loss = jax.value_and_grad(stage.loss, has_aux=True)
        (value, _), grads = loss(variables["params"], {}, {}, batch, draws, 0)
        return value, grads

    def mean(parts):
        whole = jax.jit(lambda b, d: step.mean_over(part, b, d, parts))
        return whole(batch, draws)

    for one, four in zip(*map(jax.tree.leaves, (mean(1), mean(4))), strict=True):
        np.testing.assert_allclose(four, one, atol=1e-6 * max(1, np.abs(one).max()))


def test_a_step_that_is_not_finite_changes_nothing_but_the_step(finetune):
    config, stage, variables, batch, _ = finetune
    tx, rate, state = tiny.optimiser(config, variables["params"])

    def loss(params, model_state, frozen, batch, draws, step):
        # Finite loss, infinite gradient at step 1; the loss itself at step 2.
        value = jnp.square(params["head"]["bias"]).sum()
        spoilt = jnp.where(step == 1, 0.0, 1.0)
        value += jnp.sqrt(spoilt * jnp.square(params["cls_token"]).sum())
        value = jnp.where(step == 2, jnp.nan, value)
        return core.total({"odd": value}, model_state)

    broken = stage._replace(loss=loss)
    update = jax.jit(step.train_step(broken, tx, rate, 1))
    state, told = update(state, {}, batch, jax.random.key(0))
    assert told["finite"] and told["lr"] == rate(0)
    for number in (1, 2):
        before = state
        state, told = update(state, {}, batch, jax.random.key(0))
        assert not told["finite"] and state.step == number + 1
        for old, new in zip(
            *(jax.tree.leaves((s.params, s.opt_state)) for s in (before, state)),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)
    before, (state, told) = state, update(state, {}, batch, jax.random.key(0))
    assert told["finite"] and told["lr"] == rate(3)
    moved = before.params["head"]["bias"] - state.params["head"]["bias"]
    assert np.abs(moved).min() > 0


def test_draws_follow_root_and_step_only(finetune):
    config, stage, variables, batch, _ = finetune
    tx, rate, state = tiny.optimiser(config, variables["params"])
    seen = []

    def loss(params, model_state, frozen, batch, draws, step):
        jax.debug.callback(lambda lam: seen.append(float(lam)), draws["mix_lam"])
        return core.total({"x": params["head"]["bias"].sum()}, model_state)

    update = jax.jit(step.train_step(stage._replace(loss=loss), tx, rate, 1))
    for start in (0, 1, 0):
        at = state.replace(step=jnp.int32(start))
        jax.block_until_ready(update(at, {}, batch, jax.random.key(0)))
    jax.effects_barrier()
    assert seen[0] == seen[2] != seen[1]


def test_after_a_bad_step_nothing_happens_where_the_run_is_to_stop(finetune):
    config, stage, variables, batch, _ = finetune
    tx, rate, state = tiny.optimiser(config, variables["params"])
    update = jax.jit(step.train_step(stage, tx, rate, 1))
    going, told = update(state, {}, batch, jax.random.key(0), jnp.asarray(True))
    assert told["finite"] and going.step == 1
    stopped, told = update(state, {}, batch, jax.random.key(0), jnp.asarray(False))
    assert not told["finite"]
    for old, new in zip(*map(jax.tree.leaves, (state, stopped)), strict=True):
        np.testing.assert_array_equal(old, new)
    plain, _ = update(state, {}, batch, jax.random.key(0))
    for one, other in zip(*map(jax.tree.leaves, (going, plain)), strict=True):
        np.testing.assert_array_equal(one, other)
