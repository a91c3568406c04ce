# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detections: the likeliest classes and boxes of regions, each object once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from g2sd_jax.ops import boxes as box_ops
from g2sd_jax.ops import nms, proposals, selection

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # Of `boxes.encode`.


class Detections(NamedTuple):
    """Objects of every picture, the surest first; the real ones come first."""

    boxes: Float32[Array, "B R 4"]
    scores: Float32[Array, "B R"]
    labels: Int32[Array, "B R"]
    valid: Bool[Array, "B R"]
    region: Int32[Array, "B R"]  # The region that each comes from.


def decode_classes(
    regions: Float32[ArrayLike, "B R 4"],
    deltas: Float32[ArrayLike, "B R C 4"],
    size: Shaped[ArrayLike, "B 2"],
) -> Float32[Array, "B R C 4"]:
    """Decodes the box of each region for each class, clipped to the pictures."""
    decoded = box_ops.decode(regions[:, :, None], deltas, BOX_WEIGHTS)
    return box_ops.clip(decoded, size)


def detect(
    probabilities: Float32[ArrayLike, "B R _"],
    boxes: Float32[ArrayLike, "B R C 4"],
    valid: Bool[ArrayLike, "B R"],
    *,
    least: float,
    threshold: float,
    count: int,
    candidates: int,
) -> Detections:
    """Chooses the surest pairs of region and class that no better one suppresses.

    Suppression goes from surer to less sure pairs, so the result is exact if `count`
    pairs of the candidates stay, or if no pair above `least` is left out of them.

    Args:
        probabilities: of the classes, background last.
        boxes: of every region for each class.
        valid: which of the regions are real.
        least: probability that a detection has to exceed.
        threshold: of the suppression, within each class.
        count: detections of a picture at most.
        candidates: pairs that suppression begins with.
    """
    batch, regions, classes, _ = boxes.shape
    scores = probabilities[..., :classes]
    likely = (scores > least) & valid[..., None]
    flat = lambda x: x.reshape(batch, regions * classes, *x.shape[3:])
    candidates = min(candidates, regions * classes)
    place, real = jax.vmap(lambda s, c: selection.top(s, c, candidates))(
        flat(scores), flat(likely)
    )
    chosen, labels = proposals.take(flat(boxes), place), place % classes
    survivors = nms.keep(chosen, real, threshold, labels)
    count = min(count, candidates)
    slot, real = jax.vmap(lambda k: selection.indices(k, count))(survivors)
    pick = lambda x: proposals.take(x, slot)
    return Detections(
        boxes=jnp.where(real[..., None], pick(chosen), 0.0),
        scores=jnp.where(real, pick(proposals.take(flat(scores), place)), 0.0),
        labels=pick(labels),
        valid=real,
        region=pick(place // classes),
    )
