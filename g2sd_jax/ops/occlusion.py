# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of which a growing part is hidden (after arXiv 2105.10497)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from g2sd_jax.ops import patches

ORDERS = ("random", "salient", "non-salient")  # Which patches go first.


def saliency(answer: Callable, image: jax.Array, patch: int) -> jax.Array:
    """[B, N] how much each patch counts, to first order, for what a network answers.

    Blanking a patch sets its pixels x to 0, which moves the log-probability of the
    network's own first answer by about -g.x with g its gradient; the score is |g.x|.

    Args:
        answer: image -> [B, C] logits.
        image: [B, H, W, C] prepared.
        patch: side in pixels.
    """

    def certainty(image):
        logits = answer(image).astype(jnp.float32)
        return jax.nn.log_softmax(logits).max(axis=-1).sum()

    effect = jax.grad(certainty)(image) * image
    return jnp.abs(patches.patchify(effect, patch).sum(axis=-1))


def ranks(key: jax.Array, scores: jax.Array, order: str) -> jax.Array:
    """[B, N] when each patch goes, 0 first.

    Args:
        key: for the random order.
        scores: [B, N] of `saliency`.
        order: one of `ORDERS`.
    """
    by = {
        "random": lambda: jax.random.uniform(key, scores.shape),
        "salient": lambda: -scores,
        "non-salient": lambda: scores,
    }[order]()
    return jnp.argsort(jnp.argsort(by, axis=1), axis=1)


def blank(image: jax.Array, ranks: jax.Array, count, patch: int) -> jax.Array:
    """The image without its first `count` patches.

    Args:
        image: [B, H, W, C] prepared, so that 0 is the data set's mean colour.
        ranks: [B, N] of `ranks`.
        count: how many patches become 0; a traced number is welcome.
        patch: side in pixels.
    """
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    kept = patches.patchify(image, patch) * (ranks >= count)[..., None]
    return patches.unpatchify(kept, patch, grid)
