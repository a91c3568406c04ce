# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The five losses of Mask R-CNN over padded regions, and their normalisation by groups.

Where a loss divides by a number that the data decides, such as that of the foreground
regions, it does so within contiguous groups of the batch, and averages over the groups:
as many processes of so many pictures each did in the published runs. A number of
devices, or of micro-batches, then changes nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Integer

from g2sd_jax.ops import boxes as box_ops
from g2sd_jax.ops import detections, proposals, selection


def group_mean(
    total: Float32[ArrayLike, " B"], count: Float32[ArrayLike, " B"], group: int
) -> Float32[Array, ""]:
    """Divides the sums of each group by its counts, then averages over the groups.

    Args:
        total: a sum for each picture.
        count: what it is divided by; a group in which all of it is 0 adds 0.
        group: pictures that are divided together; divides B.
    """
    sums = [x.reshape(-1, group).sum(axis=1) for x in (total, count)]
    some = sums[1] > 0
    return jnp.where(some, sums[0] / jnp.where(some, sums[1], 1.0), 0.0).mean()


def rpn_objectness(
    logits: Float32[ArrayLike, "B N"],
    foreground: Bool[ArrayLike, "B N"],
    background: Bool[ArrayLike, "B N"],
    *,
    count: int,
) -> Float32[Array, ""]:
    """Binary cross-entropy over sampled anchors, divided by what may be sampled.

    Args:
        logits: of the anchors of all levels.
        foreground: sampled anchors that stand for an object.
        background: sampled anchors that stand for none.
        count: anchors of a picture; the divisor, even if fewer were there.
    """
    target = jnp.asarray(foreground).astype(jnp.float32)
    loss = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return jnp.where(foreground | background, loss, 0.0).sum() / (count * len(logits))


def rpn_boxes(
    deltas: Float32[ArrayLike, "B N 4"],
    anchors: Float32[ArrayLike, "N 4"],
    objects: Float32[ArrayLike, "B G 4"],
    index: Integer[ArrayLike, "B N"],
    foreground: Bool[ArrayLike, "B N"],
    *,
    count: int,
    most: int,
) -> Float32[Array, ""]:
    """Absolute error of the deltas of foreground anchors, divided as `rpn_objectness`.

    Args:
        deltas: of the anchors of all levels.
        anchors: of all levels.
        objects: padded ground truth.
        index: the object of each anchor.
        foreground: sampled anchors that stand for an object.
        count: anchors of a picture; the divisor.
        most: foreground anchors of a picture; others than those are not looked at.
    """
    place, real = jax.vmap(lambda x: selection.indices(x, most))(foreground)
    anchor = jnp.asarray(anchors)[place]
    target = proposals.take(objects, proposals.take(index, place))
    error = box_errors(
        proposals.take(deltas, place), anchor, target, real, proposals.RPN_WEIGHTS
    )
    return error.sum() / (count * len(deltas))


def box_errors(
    deltas: Float32[ArrayLike, "B R 4"],
    source: Float32[ArrayLike, "B R 4"],
    target: Float32[ArrayLike, "B R 4"],
    counted: Bool[ArrayLike, "B R"],
    weights: Sequence[float],
) -> Float32[Array, "B R"]:
    """Sum of the absolute errors of four deltas, 0 where a box does not count.

    Args:
        deltas: predicted.
        source: anchors or regions.
        target: the boxes of their objects.
        counted: which boxes count; the others may be empty.
        weights: of `boxes.encode`.
    """
    # Empty boxes, such as padded ones, have no logarithm: a gradient would be NaN.
    unit = jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float32)[None, None]
    source, target = (
        jnp.where(counted[..., None], box, unit) for box in (source, target)
    )
    wanted = jax.lax.stop_gradient(box_ops.encode(source, target, weights))
    return jnp.where(counted, jnp.abs(deltas - wanted).sum(axis=-1), 0.0)


def region_classes(
    logits: Float32[ArrayLike, "B R _"],
    label: Integer[ArrayLike, "B R"],
    valid: Bool[ArrayLike, "B R"],
    *,
    group: int,
) -> Float32[Array, ""]:
    """Cross-entropy over all sampled regions of a group.

    Args:
        logits: of the classes, background last.
        label: of each region.
        valid: which of the regions are real.
        group: of `group_mean`.
    """
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    total = jnp.where(valid, loss, 0.0).sum(axis=1)
    return group_mean(total, jnp.sum(valid, axis=1, dtype=jnp.float32), group)


def region_boxes(
    deltas: Float32[ArrayLike, "B R C 4"],
    regions: proposals.Regions,
    objects: Float32[ArrayLike, "B G 4"],
    *,
    group: int,
) -> Float32[Array, ""]:
    """Absolute error of foreground deltas, divided by all sampled regions of a group.

    Args:
        deltas: of every region for each class; the region's own class counts.
        regions: sampled.
        objects: padded ground truth.
        group: of `group_mean`.
    """
    classes = jnp.arange(deltas.shape[2])[None, None]
    chosen = (regions.label[..., None] == classes)[..., None]
    deltas = jnp.where(chosen, deltas, 0.0).sum(axis=2)  # [B, R, 4]
    target = proposals.take(objects, regions.index)
    error = box_errors(
        deltas, regions.boxes, target, regions.foreground, detections.BOX_WEIGHTS
    )
    count = jnp.sum(regions.valid, axis=1, dtype=jnp.float32)
    return group_mean(error.sum(axis=1), count, group)


def region_masks(
    logits: Float32[ArrayLike, "B R side side C"],
    label: Integer[ArrayLike, "B R"],
    target: Bool[ArrayLike, "B R side side"],
    foreground: Bool[ArrayLike, "B R"],
    *,
    group: int,
) -> Float32[Array, ""]:
    """Binary cross-entropy of the mask of each region's class, mean over a group.

    Args:
        logits: of every pixel for each class.
        label: of each region.
        target: its mask.
        foreground: which of the regions have one; 0 if none of a group has.
        group: of `group_mean`.
    """
    classes = jnp.arange(logits.shape[-1])[None, None]
    chosen = (label[..., None] == classes)[:, :, None, None]
    logits = jnp.where(chosen, logits, 0.0).sum(axis=-1)
    target = jnp.asarray(target).astype(jnp.float32)
    loss = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    total = jnp.where(foreground, loss.mean(axis=(2, 3)), 0.0).sum(axis=1)
    return group_mean(total, jnp.sum(foreground, axis=1, dtype=jnp.float32), group)
