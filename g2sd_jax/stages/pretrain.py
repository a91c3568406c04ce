# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Masked autoencoder pre-training (MAE, arXiv 2111.06377)."""

from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.evaluators import masked as masked_evaluators
from g2sd_jax.losses import masked
from g2sd_jax.models import layers, mae
from g2sd_jax.ops import augment, patches
from g2sd_jax.tasks import reconstruction

NEEDS = ("mask_ratio", "target", "monitor")
DISTILLS = ""


def build(config: ConfigDict) -> core.Stage:
    """Predict the pixels of the patches that were removed."""
    model = mae.autoencoder(config.model, **layers.compute_options(config))
    reconstruction.check_masking(config, model.grid)
    spec = augment.spec(config, train=True)

    def init(key):
        return mae.init(model, key)

    def draw(key, batch):
        return reconstruction.draw(key, batch, config)

    def loss(params, model_state, frozen, batch, draws, step):
        image = augment.prepare(batch, draws, spec)["image"]
        masking = patches.mask(draws["noise"], config.mask_ratio)
        out = model.apply({"params": params}, image, masking)
        target = reconstruction.pixels(image, model.patch, config.target)
        pixel = masked.masked_pixel_loss(out.pixels, target, masking.removed)
        return core.total({"pixel": pixel}, model_state)

    stage = core.Stage(
        init,
        draw,
        loss,
        warm_start=lambda variables: reconstruction.warm_start(variables, config),
        augment=lambda batch, draws: augment.prepare(batch, draws, spec),
        describe=dict(mae.describe(config), target=config.target),
        reads=reconstruction.reads(config),
        picture=reconstruction.picture(config),
        summarise=reconstruction.summarise(config),
    )
    return stage._replace(evaluators=masked_evaluators.evaluators(config, stage, model))
