# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Matching and sampling under jit, against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax.ops import anchors, matching, selection

RULE = dict(low=0.3, high=0.7, low_quality=True)


def table(boxes, objects):
    """Overlaps of all pairs by hand, float64."""
    left, right = boxes[:, None].astype(float), objects[None].astype(float)
    corner = np.minimum(left[..., 2:], right[..., 2:])
    sides = np.maximum(corner - np.maximum(left[..., :2], right[..., :2]), 0)
    common = sides.prod(axis=-1)
    area = lambda box: (box[..., 2:] - box[..., :2]).prod(axis=-1)
    return common / np.maximum(area(left) + area(right) - common, 1e-9)


def objects_of(rng, count, canvas):
    """Boxes of all sizes: one pixel, slivers, the canvas."""
    corner = rng.uniform(0, canvas - 1, (count, 2))
    sides = np.exp(rng.uniform(np.log(1e-3), np.log(canvas), (count, 2)))
    boxes = np.concatenate([corner, np.minimum(corner + sides, canvas)], axis=1)
    boxes[:3] = [[7, 9, 8, 10], [0, 0, canvas, canvas], [0, 0, canvas, 1]]
    return boxes.astype(np.float32)


def test_every_object_that_overlaps_has_a_positive_anchor(rng, optimised):
    canvas = 128
    places = anchors.levels(
        [(canvas // s,) * 2 for s in (8, 16)], (8, 16), (16, 32), (0.5, 1.0, 2.0)
    )
    boxes = jnp.concatenate(places)
    match = jax.jit(jax.vmap(functools.partial(matching.match, boxes, **RULE)))
    objects = np.stack([objects_of(rng, 40, canvas) for _ in range(5)])
    valid = np.arange(40)[None] < np.array([40, 40, 40, 13, 0])[:, None]
    matches = jax.tree.map(np.asarray, match(objects, valid))
    for row in range(len(objects)):
        overlaps = table(np.asarray(boxes), objects[row]) * valid[row]
        positive = matches.label[row] == matching.FOREGROUND
        best = overlaps >= overlaps.max(axis=0) * (1 - 1e-4)
        for number in np.flatnonzero(overlaps.max(axis=0) > 0):
            assert positive[best[:, number]].any(), (row, objects[row, number])
        # Nothing else is positive than the best, and those that overlap enough.
        few = (best & (overlaps > 0)).any(axis=1) | (overlaps.max(axis=1) > 0.6999)
        assert not (positive & ~few).any()
    assert not matches.label[-1].any()  # Without an object all is background.


def test_the_largest_are_chosen_exactly(rng):
    largest = jax.jit(selection.largest)
    top = jax.jit(selection.top, static_argnums=2)
    for trial in range(20):
        values = rng.normal(size=200).astype(np.float32)
        values = np.round(values, trial % 3)  # Many of them are equal.
        candidates = rng.random(200) < rng.random()
        count = int(rng.integers(0, 60))
        order = np.argsort(np.where(candidates, -values, np.inf), kind="stable")
        order = order[: min(count, candidates.sum())]
        chosen = np.flatnonzero(largest(values, candidates, count))
        np.testing.assert_array_equal(chosen, np.sort(order))
        place, real = top(values, candidates, 60)
        wanted = np.argsort(np.where(candidates, -values, np.inf), kind="stable")
        wanted = wanted[: min(60, candidates.sum())]
        np.testing.assert_array_equal(np.asarray(place)[np.asarray(real)], wanted)
        assert np.asarray(real)[: len(wanted)].all()
