# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A detector at inference: proposals, detections, and their masks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float32, Integer

from g2sd_jax.models import detector
from g2sd_jax.ops import detections, proposals


class Settings(NamedTuple):
    """The numbers that inference depends on, beside the network's."""

    before: int  # Of `proposals.propose`.
    after: int
    nms: float
    least: float  # Of `detections.detect`.
    class_nms: float
    count: int
    candidates: int


def predictor(
    model: detector.Detector, settings: Settings
) -> Callable[..., dict[str, jax.Array]]:
    """Makes (variables, image, size) -> the objects of every picture.

    Args:
        model: the detector.
        settings: of its inference.
    Returns:
        A function of variables, normalised canvases [B, H, W, c], and the height and
        width [B, 2] of the pictures on them, that returns `boxes` [B, R, 4] in pixels
        of the canvas, `scores` [B, R], `labels` [B, R], `valid` [B, R], and `masks`
        [B, R, M, M], the probabilities of each one's class, the surest first.
    """
    net = model.backbone.net

    def predict(
        variables: Mapping[str, Any],
        image: Float32[ArrayLike, "B H W c"],
        size: Integer[ArrayLike, "B 2"],
    ) -> dict[str, jax.Array]:
        run = functools.partial(model.apply, variables)
        maps = run(image, method=model.features).maps
        logits, deltas = run(maps, method=model.anchors)
        regions = proposals.propose(
            logits,
            deltas,
            detector.anchor_boxes(model.geometry, net.image_size, net.patch),
            size,
            before=settings.before,
            after=settings.after,
            threshold=settings.nms,
        )
        class_logits, deltas = run(maps, regions.boxes, method=model.classify)
        answers = detections.detect(
            jax.nn.softmax(class_logits),
            detections.decode_classes(regions.boxes, deltas, size),
            regions.valid,
            least=settings.least,
            threshold=settings.class_nms,
            count=settings.count,
            candidates=settings.candidates,
        )
        masks = run(maps, answers.boxes, method=model.segment)
        chosen = answers.labels[..., None] == jnp.arange(masks.shape[-1])[None, None]
        masks = jnp.where(chosen[:, :, None, None], masks, 0.0).sum(axis=-1)
        return {
            "boxes": answers.boxes,
            "scores": answers.scores,
            "labels": answers.labels,
            "valid": answers.valid,
            "masks": jax.nn.sigmoid(masks),
        }

    return predict
