# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation losses against numbers worked out by hand, and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from g2sd_jax.losses import distill
from g2sd_jax.models import layers
from g2sd_jax.ops import patches
from g2sd_jax.stages import generic_distill


def test_smooth_l1_by_hand():
    got = distill.smooth_l1(jnp.array([0.0, 1.0, -2.0, 3.0]), jnp.zeros(4), beta=2.0)
    np.testing.assert_allclose(got, [0, 0.25, 1, 2])
    near, far = (
        distill.smooth_l1(jnp.array(x), jnp.zeros(()), 0.5) for x in (0.499, 0.501)
    )
    assert abs(float(far - near) - 0.002) < 1e-5  # One slope, no step, at beta.


def test_features_of_the_teacher_itself_lose_nothing(rng):
    feature = tiny.normal(rng, 2, 5, 8)
    target = layers.standardise(feature)
    np.testing.assert_allclose(target.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(target.std(-1), 1, atol=1e-5)
    assert distill.feature_loss(target, target, beta=2.0) == 0


def test_supervised_tokens_are_slices_of_all(rng):
    masking = patches.mask(tiny.normal(rng, 2, 8), 0.75)
    pred, target = tiny.normal(rng, 2, 2, 9, 4)
    losses, counts = {}, {}
    for tokens in ("masked", "visible"):
        supervised = generic_distill.supervised(masking, tokens)
        chosen = np.asarray(supervised, bool)
        assert supervised.shape == (2, 9) and not chosen[:, 0].any()
        losses[tokens] = distill.feature_loss(
            pred, target, beta=2.0, supervised=supervised
        )
        chosen_pred, chosen_target = (x[chosen][None] for x in (pred, target))
        part = distill.feature_loss(chosen_pred, chosen_target, beta=2.0)
        np.testing.assert_allclose(losses[tokens], part, rtol=1e-6)
        counts[tokens] = chosen.sum()
    assert counts == {"masked": 12, "visible": 4}
    assert generic_distill.supervised(masking, "all") is None
    class_part = distill.feature_loss(pred[:, :1], target[:, :1], beta=2.0)
    whole = 2 * class_part + sum(counts[key] * losses[key] for key in losses)
    everything = distill.feature_loss(pred, target, beta=2.0)
    np.testing.assert_allclose(everything, whole / 18, rtol=1e-6)


def qkv(rng, depth, width):
    return tuple(tiny.normal(rng, depth, 2, 5, width) for _ in range(3))


def test_relations_of_the_teacher_itself_lose_nothing(rng):
    teacher = qkv(rng, 3, 8)
    assert abs(distill.relation_loss(teacher, teacher, groups=2)) < 1e-6
    permuted = (teacher[1], teacher[0], teacher[2])
    assert distill.relation_loss(permuted, teacher, groups=2) > 0.01


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)])
def test_relation_loss_by_loops(rng, ours, theirs):
    student, teacher, groups = qkv(rng, ours, 4), qkv(rng, theirs, 8), 2

    def relation(side, layer, a, b, image, group):
        width = side[0].shape[-1] // groups
        channels = slice(group * width, (group + 1) * width)
        a, b = (np.float64(side[i][layer, image, :, channels]) for i in (a, b))
        scores = np.exp(a @ b.T / width**0.5)
        return scores / scores.sum(axis=1, keepdims=True)

    total = 0
    for layer in range(min(ours, theirs)):
        for a, b in np.ndindex(3, 3):
            for image, group in np.ndindex(2, groups):
                at = (layer, a, b, image, group)
                p, q = relation(teacher, *at), relation(student, *at)
                total += (p * np.log(p / q)).sum(axis=1).mean() / (2 * groups)
    got = distill.relation_loss(student, teacher, groups=groups)
    np.testing.assert_allclose(got, total / (9 * ours), rtol=1e-5)


def test_soft_kl_by_hand():
    student = jnp.log(jnp.array([[1.0, 1.0]]))
    teacher = 2 * jnp.log(jnp.array([[1.0, 3.0]]))  # At T = 2: (1/4, 3/4).
    expected = 4 * (0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    got = distill.soft_kl(student, teacher, temperature=2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert distill.soft_kl(teacher, teacher, temperature=3.0) == 0


def nkd_by_hand(student, teacher, label, alpha, temperature):
    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    total = 0
    for s, t, y in zip(student, teacher, label, strict=True):
        s, t = np.float64(s), np.float64(t)
        total -= softmax(t)[y] * np.log(softmax(s)[y])
        others = np.arange(len(s)) != y
        q_s, q_t = (softmax(x[others] / temperature) for x in (s, t))
        total -= alpha * temperature**2 * (q_t * np.log(q_s)).sum()
    return total / len(label)


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.5, 3.0)])
def test_nkd_by_hand(rng, alpha, temperature):
    student, teacher = tiny.normal(rng, 2, 4, 6)
    label = jnp.array([0, 5, 2, 2])
    keys = dict(alpha=alpha, temperature=temperature)
    got = distill.nkd(student, teacher, label, **keys)
    expected = nkd_by_hand(student, teacher, label, **keys)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_nkd_survives_underflow():
    # All others underflow to 0 beside the label; among themselves they do not.
    teacher = jnp.array([[0.0, -200.0, -200.0, -300.0]])
    student = jnp.array([[0.0, 1.0, 2.0, -200.0]])
    label = jnp.array([0])
    loss = lambda x: distill.nkd(x, teacher, label, alpha=1.0, temperature=1.0)
    value, grad = jax.value_and_grad(loss)(student)
    expected = nkd_by_hand(student, teacher, [0], 1.0, 1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert jnp.isfinite(grad).all()
    # p_s - onehot of the target part, and q_s - q_t of the others.
    q_s = jax.nn.softmax(student[0, 1:]) - jnp.array([0.5, 0.5, 0.0])
    expected = jax.nn.softmax(student[0]) - jnp.eye(4)[0] + jnp.pad(q_s, (1, 0))
    np.testing.assert_allclose(grad[0], expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_channel_wise_by_loops(rng, temperature):
    """Each channel is a distribution over positions, whose order does not matter."""
    student, teacher = tiny.normal(rng, 2, 2, 2, 3, 4)
    total = 0
    for image, channel in np.ndindex(2, 4):
        ours, theirs = (
            np.exp(np.float64(x[image, ..., channel]) / temperature)
            for x in (student, teacher)
        )
        ours, theirs = ours / ours.sum(), theirs / theirs.sum()
        total -= temperature**2 * (theirs * np.log(ours)).sum()
    got = distill.channel_wise(student, teacher, temperature=temperature)
    np.testing.assert_allclose(got, total / (2 * 4), rtol=1e-5)
    projected = distill.channel_wise(
        student, teacher, temperature=temperature, channels=8
    )
    np.testing.assert_allclose(projected, got / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("reduction", "divisor"), [("mean", 2 * 2 * 3 * 4), ("batch", 2), ("sum", 1)]
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_class_wise_by_loops(rng, temperature, reduction, divisor):
    """Each position is a distribution over classes."""
    student, teacher = tiny.normal(rng, 2, 2, 2, 3, 4)
    total = 0
    for at in np.ndindex(2, 2, 3):
        ours, theirs = (
            np.exp(np.float64(x[at]) / temperature) for x in (student, teacher)
        )
        ours, theirs = ours / ours.sum(), theirs / theirs.sum()
        total += temperature**2 * (theirs * np.log(theirs / ours)).sum()
    got = distill.class_wise(
        student, teacher, temperature=temperature, reduction=reduction
    )
    np.testing.assert_allclose(got, total / divisor, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: distill.feature_loss(s, t, beta=2.0),
        lambda s, t: distill.relation_loss(3 * (s[None],), 3 * (t[None],), groups=1),
        lambda s, t: distill.hard_label(s[0], t[0]),
        lambda s, t: distill.soft_kl(s[0], t[0], temperature=2.0),
        lambda s, t: distill.nkd(
            s[0], t[0], jnp.array([0, 1, 2]), alpha=1.0, temperature=2.0
        ),
        lambda s, t: distill.channel_wise(s[None], t[None], temperature=2.0),
        lambda s, t: distill.class_wise(s[None], t[None], temperature=2.0),
    ],
)
def test_no_gradient_reaches_the_teacher(rng, loss):
    student, teacher = tiny.normal(rng, 2, 2, 3, 4)
    ours, theirs = jax.grad(loss, argnums=(0, 1))(student, teacher)
    np.testing.assert_array_equal(theirs, 0)
    assert np.abs(ours).max() > 1e-3
