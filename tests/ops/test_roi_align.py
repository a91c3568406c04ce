# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""ROIAlign: sample by sample in NumPy, and of windows against all of the maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g2sd_jax.ops import roi_align, roi_windows

STRIDES = (4, 8)


def pool_windows(maps, boxes, level, strides, bins, **options):
    """To one size."""
    options |= dict(bins=(bins,), counts=(boxes.shape[1],))
    return roi_windows.pool_each(maps, boxes, level, strides, **options)[0]


def by_hand(low, high, size, bins):
    """[bins, size]: one sample after another."""
    width = (high - low) / bins
    count = max(int(np.ceil(width)), 0)
    weights = np.zeros((bins, size))
    for i in range(bins):
        for j in range(count):
            place = low + i * width + (j + 0.5) * width / count
            if not -1 <= place <= size:
                continue
            place = min(max(place, 0), size - 1)
            left = int(place)
            weights[i, left] += (1 - (place - left)) / count
            weights[i, min(left + 1, size - 1)] += (place - left) / count
    return weights


def test_weights_are_those_of_every_sample(rng):
    size, bins = 9, 3
    low = np.concatenate([rng.uniform(-15, 10, 40), [-0.5, 2.0, 3.0, -1.0, 8.5]])
    side = np.concatenate([rng.uniform(0, 60, 40), [9.0, 0.0, 1e-3, 3.0, 40.0]])
    low, high = np.float32(low), np.float32(low + side)
    got = jax.jit(
        functools.partial(roi_align.axis_weights, bins=bins, samples=0, cells=size)
    )(low, high, np.full(len(low), size))
    wanted = [
        by_hand(*map(float, ends), size, bins) for ends in np.stack([low, high], axis=1)
    ]
    np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 256 // s, 192 // s, 5)) for s in STRIDES]
    corner = rng.uniform(-9, (170, 230), (2, 37, 2))
    side = np.exp(rng.uniform(np.log(5), np.log(500), (2, 37, 2)))
    boxes = np.concatenate([corner, np.minimum(corner + side, (200, 270))], axis=2)
    level = (rng.random((2, 37)) < 0.3).astype(np.int32)
    return tuple(map(np.float32, maps)), np.float32(boxes), level


def value_and_gradient(pool, maps, boxes, level, chunk):
    weights = np.random.default_rng(1).normal(size=(*level.shape, 3, 3, 5))

    def score(maps):
        pooled = pool(maps, boxes, level, STRIDES, bins=3, chunk=chunk)
        return (pooled * jnp.asarray(weights, jnp.float32)).sum(), pooled

    (_, pooled), grads = jax.jit(jax.value_and_grad(score, has_aux=True))(maps)
    return pooled, grads


def test_windows_equal_maps_for_boxes_that_stay_inside(example):
    maps, boxes, level = example
    grids = [x.shape[1:3] for x in maps]
    windows = roi_windows.look(boxes, level, grids, STRIDES, bins=3)
    stays = ~np.asarray(windows.leaves)
    assert 5 <= (~stays).sum() < stays.sum()
    # Boxes that leave become ones that pool nothing.
    boxes = np.where(stays[..., None], boxes, np.float32(0))
    wanted = value_and_gradient(roi_align.pool, maps, boxes, level, chunk=37)
    for chunk in (8, 64):
        got = value_and_gradient(pool_windows, maps, boxes, level, chunk)
        np.testing.assert_allclose(got[0], wanted[0], atol=2e-5)
        for mine, theirs in zip(got[1], wanted[1], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-4)


def test_only_boxes_that_leave_differ(example):
    maps, boxes, level = example
    grids = [x.shape[1:3] for x in maps]
    windows = roi_windows.look(boxes, level, grids, STRIDES, bins=3)
    pool = lambda rule: np.asarray(rule(maps, boxes, level, STRIDES, bins=3))
    apart = np.abs(pool(pool_windows) - pool(roi_align.pool)).max(axis=(2, 3, 4))
    leaves = np.asarray(windows.leaves)
    assert (apart[~leaves] < 2e-5).all() and (apart[leaves] > 1e-3).mean() > 0.9


def test_one_reading_for_two_sizes_equals_a_reading_for_each(example):
    maps, boxes, level = example

    def score(rule):
        def summed(maps):
            pooled = rule(maps, boxes, level, STRIDES, bins=(3, 4), counts=(37, 11))
            assert [x.shape[1:4] for x in pooled] == [(37, 3, 3), (11, 4, 4)]
            return sum((x @ (1 + jnp.arange(5.0))).sum() for x in pooled), pooled

        (_, pooled), grads = jax.jit(jax.value_and_grad(summed, has_aux=True))(maps)
        return *pooled, *grads

    def each(maps, boxes, level, strides, bins, counts):
        return tuple(
            pool_windows(maps, boxes[:, :n], level[:, :n], strides, size, chunk=8)
            for size, n in zip(bins, counts, strict=True)
        )

    wanted = score(each)
    for chunk in (8, 64):
        got = score(functools.partial(roi_windows.pool_each, chunk=chunk))
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-4)
    with pytest.raises(ValueError, match="the most first"):
        score(lambda *x, **y: roi_windows.pool_each(*x, **{**y, "counts": (36, 11)}))
