# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the recipes of semantic segmentation share: ADE20K, as G2SD trains it."""

from ml_collections import ConfigDict

from configs import common

ADE20K = 20_210  # Training images.
STEPS_PER_EPOCH = ADE20K // 16


def task(size, lr=1e-4, layer_decay=0.65):
    """Everything but the stage: 160,000 steps of 16 crops of 512 x 512."""
    config = common.base()
    config.task = "segmentation"
    config.batch = 16  # Batch statistics are those of all of it, on any devices.
    config.total_steps = 160_000
    config.eval_epochs = 16_000 / STEPS_PER_EPOCH
    config.checkpoint.every = 16_000
    config.data.source = "maps"  # The official folder, or any other: two patterns.
    config.data.images = "images/{split}/*"  # * is the same for a picture and its map.
    config.data.labels = "annotations/{split}/*"
    config.data.train_split = "training"
    config.data.eval_split = "validation"
    config.data.reduce_zero_label = True  # 0 is ignored, all others count one less.
    config.data.ignore = ()  # More labels, as they are stored, that are ignored.
    config.data.classes = 150
    config.data.train_examples = ADE20K
    config.init_from = ""  # Workdir or file of an encoder, or of a segmentor.
    config.model = common.segmentor(size)
    config.augment = ConfigDict()
    config.augment.fit = (512, 2048)  # Shorter, longer side at most, times the scale.
    config.augment.scale = (0.5, 2.0)
    config.augment.crop_share = 0.75  # One class covers less of a crop; 1: any crop.
    config.augment.crop_tries = 10  # Until one is found; the next is taken as it is.
    config.augment.flip = 0.5  # Chance of a horizontal flip.
    config.augment.photometric = 0.5  # Chance of each of four changes of colour.
    config.loss = ConfigDict()
    config.loss.auxiliary = 0.4  # Weight of the auxiliary head's cross-entropy.
    config.loss.divisor = "all"  # Ignored pixels count in the mean (published); valid.
    config.inference = ConfigDict()
    config.inference.mode = "slide"  # slide, whole: windows, or one picture as one.
    config.inference.fit = (512, 2048)  # Shorter, longer side at most, before slide.
    config.inference.stride = (341, 341)  # From window to window, rows and columns.
    config.optim = common.adamw(
        "segmentation",
        schedule="poly",
        lr=lr,
        power=1.0,
        warmup_epochs=1500 / STEPS_PER_EPOCH,
        warmup_start=1e-6,  # Share of the rate at step 0.
        layer_decay=layer_decay,
        decay_positions=True,  # Class token, position tables: as published, by mistake.
    )
    return config


def recipe(args):
    """Fine-tuning: the teacher (b16, l16), and students without distillation."""
    if args.model == "l16":
        return task(args.model, lr=2e-5, layer_decay=0.95)
    return task(args.model)
