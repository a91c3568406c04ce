# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of which a growing part is hidden (after arXiv 2105.10497)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer, Key

from g2sd_jax.ops import patches

ORDERS = ("random", "salient", "non-salient")  # Which patches go first.


def saliency(
    answer: Callable[[Array], Array], image: Float[ArrayLike, "B H W c"], patch: int
) -> Float[ArrayLike, "B N"]:
    """Scores how much each patch counts for a network's answer, to first order.

    Blanking a patch sets its pixels x to 0, which moves the log-probability of the
    network's own first answer by about -g.x with g its gradient; the score is |g.x|.

    Args:
        answer: image -> [B, C] logits.
        image: normalised.
        patch: side in pixels.
    """

    def certainty(image):
        logits = answer(image).astype(jnp.float32)
        return jax.nn.log_softmax(logits).max(axis=-1).sum()

    effect = jax.grad(certainty)(image) * image
    return jnp.abs(patches.patchify(effect, patch).sum(axis=-1))


def ranks(
    key: Key[ArrayLike, ""], scores: Float[ArrayLike, "B N"], order: str
) -> Int[ArrayLike, "B N"]:
    """Ranks the patches of each image by when they go, 0 first.

    Args:
        key: for the random order.
        scores: of `saliency`.
        order: one of `ORDERS`.
    """
    by = {
        "random": lambda: jax.random.uniform(key, scores.shape),
        "salient": lambda: -scores,
        "non-salient": lambda: scores,
    }[order]()
    return jnp.argsort(jnp.argsort(by, axis=1), axis=1)


def blank(
    image: Float[ArrayLike, "B H W c"],
    ranks: Int[ArrayLike, "B N"],
    count: Integer[ArrayLike, ""],
    patch: int,
) -> Float[ArrayLike, "B H W c"]:
    """Sets the first `count` patches of every image to 0.

    Args:
        image: normalised, so that 0 is the data set's mean colour.
        ranks: of `ranks`.
        count: how many patches become 0; it may be traced.
        patch: side in pixels.
    """
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    remaining = patches.patchify(image, patch) * (ranks >= count)[..., None]
    return patches.unpatchify(remaining, patch, grid)
