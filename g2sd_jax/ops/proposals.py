# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Regions: proposed by the first stage of a detector, sampled to train the second."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32, Integer, Shaped

from g2sd_jax.ops import boxes as box_ops
from g2sd_jax.ops import matching, nms, selection

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # Of `boxes.encode`.


class Proposals(NamedTuple):
    """Boxes that may hold an object, the likeliest first; the real ones come first."""

    boxes: Float32[Array, "B R 4"]
    logits: Float32[Array, "B R"]
    valid: Bool[Array, "B R"]


class Anchors(NamedTuple):
    """The anchors that the losses of the first stage are made of."""

    foreground: Bool[Array, "B N"]  # Sampled, and standing for an object.
    background: Bool[Array, "B N"]  # Sampled, and standing for none.
    index: Int32[Array, "B N"]  # The object that each anchor overlaps most.
    label: Shaped[Array, "B N"]  # Of `matching`, before sampling.


class Regions(NamedTuple):
    """Sampled regions: foreground first, then background, then those of no use."""

    boxes: Float32[Array, "B R 4"]
    label: Int32[Array, "B R"]  # The number of classes stands for background.
    index: Int32[Array, "B R"]  # The object of each.
    foreground: Bool[Array, "B R"]
    valid: Bool[Array, "B R"]
    candidate: Int32[Array, "B R"]  # Its place among proposals, then objects.


def capacity(
    anchors: Sequence[Float32[ArrayLike, "_ 4"]], *, before: int, after: int, **_: float
) -> int:
    """How many proposals `propose` returns, real or not, with the same numbers."""
    return min(after, len(anchors) * min(before, max(map(len, anchors))))


def propose(
    logits: Sequence[Float32[ArrayLike, "B _"]],
    deltas: Sequence[Float32[ArrayLike, "B _ 4"]],
    anchors: Sequence[Float32[ArrayLike, "_ 4"]],
    size: Shaped[ArrayLike, "B 2"],
    *,
    before: int,
    after: int,
    threshold: float,
) -> Proposals:
    """Decodes the likeliest anchors of every level and thins them out.

    No gradient flows through proposals.

    Args:
        logits: of each level's anchors.
        deltas: of each level's anchors.
        anchors: of each level.
        size: height and width of the pictures, to which boxes are clipped.
        before: anchors taken of each level at most.
        after: proposals of all levels.
        threshold: of the suppression, within each level.
    """
    length = min(before, max(level.shape[1] for level in logits))
    per_level = [
        _likeliest(*level, size, length)
        for level in zip(logits, deltas, anchors, strict=True)
    ]
    boxes, scores, valid = (jnp.stack(x, axis=1) for x in zip(*per_level, strict=True))
    survivors = nms.keep(boxes, valid, threshold)  # [B, L, length]
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    boxes, scores, survivors = flat(boxes), flat(scores), flat(survivors)
    count = min(after, boxes.shape[1])
    place, real = jax.vmap(lambda s, k: selection.top(s, k, count))(scores, survivors)
    return Proposals(take(boxes, place), take(scores, place), real)


def _likeliest(logits, deltas, anchors, size, length):
    """Boxes, logits and validity [B, length] of one level, the likeliest first."""
    logits, deltas = (jax.lax.stop_gradient(x) for x in (logits, deltas))
    count = min(length, logits.shape[1])
    everything = jnp.ones(logits.shape[1], bool)
    place, _ = jax.vmap(lambda x: selection.top(x, everything, count))(logits)
    boxes = box_ops.decode(
        jnp.asarray(anchors)[place], take(deltas, place), RPN_WEIGHTS
    )
    boxes = box_ops.clip(boxes, size)
    scores, valid = take(logits, place), box_ops.nonempty(boxes)
    short = ((0, 0), (0, length - count))
    return (
        jnp.pad(boxes, (*short, (0, 0))),
        jnp.pad(scores, short),
        jnp.pad(valid, short),
    )


def take(
    values: Shaped[ArrayLike, "B N *shape"], place: Integer[ArrayLike, "B R"]
) -> Shaped[Array, "B R *shape"]:
    """Takes entries of each row of a batch."""
    return jax.vmap(lambda x, i: x[i])(jnp.asarray(values), place)


def sample_anchors(
    anchors: Float32[ArrayLike, "N 4"],
    objects: Float32[ArrayLike, "B G 4"],
    valid: Bool[ArrayLike, "B G"],
    priority: Float32[ArrayLike, "B N"],
    *,
    count: int,
    share: float,
    low: float,
    high: float,
) -> Anchors:
    """Samples anchors to learn objectness from, without replacement.

    Args:
        anchors: of all levels, one after another.
        objects: padded ground truth.
        valid: which of the objects are real.
        priority: of each anchor: uniform numbers, the largest are taken.
        count: anchors of a picture.
        share: foreground's at most; background fills up.
        low: overlap below which an anchor is background.
        high: overlap from which it is foreground, as is the best of every object.
    """

    def sample(objects, valid, priority):
        matches = matching.match(
            anchors, objects, valid, low=low, high=high, low_quality=True
        )
        positive = matches.label == matching.FOREGROUND
        negative = matches.label == matching.BACKGROUND
        chosen = choose(positive, negative, priority, count, share)
        return Anchors(*chosen, matches.index, matches.label)

    return jax.vmap(sample)(objects, valid, priority)


def choose(
    positive: Bool[ArrayLike, " N"],
    negative: Bool[ArrayLike, " N"],
    priority: Float32[ArrayLike, " N"],
    count: int,
    share: float,
) -> tuple[Bool[Array, " N"], Bool[Array, " N"]]:
    """Marks the positives and negatives of largest priority, `count` together.

    Args:
        positive: candidates of which a share is taken at most.
        negative: candidates that fill up.
        priority: finite.
        count: how many of both.
        share: of the positives.
    """
    # Separately: a key such as 1 + priority would lose bits of it, and make ties.
    foreground = selection.largest(priority, positive, jnp.int32(int(count * share)))
    room = count - jnp.sum(foreground, dtype=jnp.int32)
    return foreground, selection.largest(priority, negative, room)


def sample_regions(
    proposals: Proposals,
    objects: Float32[ArrayLike, "B G 4"],
    labels: Integer[ArrayLike, "B G"],
    valid: Bool[ArrayLike, "B G"],
    priority: Float32[ArrayLike, "B N"],
    *,
    classes: int,
    count: int,
    share: float,
    overlap: float,
) -> Regions:
    """Samples proposals and objects to train the second stage with.

    Args:
        proposals: of the first stage.
        objects: padded ground truth, whose boxes are candidates as well.
        labels: classes of the objects.
        valid: which of the objects are real.
        priority: of each proposal, then of each object; the largest are taken.
        classes: their number.
        count: regions of a picture.
        share: foreground's at most; background fills up.
        overlap: with an object, from which a region is foreground.
    """
    count = min(count, priority.shape[1])

    def sample(proposals, objects, labels, valid, priority):
        candidates = jnp.concatenate([proposals.boxes, objects])
        real = jnp.concatenate([proposals.valid, valid])
        matches = matching.match(
            candidates, objects, valid, low=overlap, high=overlap, low_quality=False
        )
        positive = (matches.label == matching.FOREGROUND) & real
        negative = (matches.label == matching.BACKGROUND) & real
        chosen = choose(positive, negative, priority, count, share)
        foreground = chosen[0]
        numbers = jnp.arange(len(candidates), dtype=jnp.int32)
        ahead, _ = selection.sorted_by(priority, numbers, foreground)
        behind, _ = selection.sorted_by(priority, numbers, chosen[1])
        # Background moves up behind the last of the foreground.
        slot = jnp.arange(count, dtype=jnp.int32)
        positives = jnp.sum(foreground, dtype=jnp.int32)
        place = jnp.where(
            slot < positives, ahead[:count], behind[jnp.maximum(slot - positives, 0)]
        )
        is_valid = slot < positives + jnp.sum(chosen[1], dtype=jnp.int32)
        is_foreground = slot < positives
        index = matches.index[place]
        return Regions(
            boxes=candidates[place],
            label=jnp.where(is_foreground, labels[index], classes).astype(jnp.int32),
            index=index,
            foreground=is_foreground,
            valid=is_valid,
            candidate=place,
        )

    proposals = jax.tree.map(jax.lax.stop_gradient, proposals)
    return jax.vmap(sample)(proposals, objects, labels, valid, priority)
