# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder: predicts pixels or features, and names nothing."""

from collections.abc import Sequence
from typing import NoReturn

from g2sd_jax import kinds
from g2sd_jax.kinds import encoders
from g2sd_jax.models import layers, mae
from g2sd_jax.weights import loading


def module(model: kinds.Finished) -> mae.Mae:
    """The module without the feature heads of a distilled student."""
    autoencoder = mae.autoencoder(
        model.config.model, **layers.compute_options(model.config)
    )
    params = model.variables["params"]
    depth = autoencoder.dec_depth if "decoder_embed" in params else 0
    return autoencoder.clone(dec_depth=depth, pixel_head="decoder_pred" in params)


def answers(model: kinds.Finished, images: Sequence[str], out: str) -> NoReturn:
    """Refuses: other verbs show its pixels and its features."""
    raise ValueError(
        f"{model.source} is a run of stage {model.config.stage}, which names "
        "nothing; g2sd reconstruct shows what an autoencoder guesses, g2sd embed "
        "writes its features."
    )


def settings(weights: loading.Weights) -> dict:
    """Its model, and the pixels it was trained on, if they are described."""
    target = weights.describe.get("target")
    return {**encoders.settings(weights), **({"target": target} if target else {})}


KIND = kinds.Kind(
    recognises=lambda arrays: (
        "decoder_blocks.0.norm1.weight" in arrays and "head.weight" not in arrays
    ),
    holds=encoders.holds,
    serves=encoders.serves,
    module=module,
    answers=answers,
    prepare=encoders.prepare,
    formats=encoders.FORMATS,
    recipe="pretrain",
    settings=settings,
)
