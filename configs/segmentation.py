# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the recipes of semantic segmentation share: ADE20K, as G2SD trains it."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from g2sd_jax.configs import common

ADE20K = 20_210  # Training images.
STEPS_PER_EPOCH = ADE20K // 16

# What a smoke run makes smaller: four taps for four blocks, 96 x 96 windows.
SMALL_HEAD = dict(taps=(0, 1, 2, 3), head_width=32)
SMALL = dict(
    model=common.SMALL_STUDENT | SMALL_HEAD | dict(aux_width=32),
    augment=dict(fit=(96, 384)),
    inference=dict(fit=(96, 384), stride=(64, 64)),
)


def task(size: str, lr: float = 1e-4, layer_decay: float = 0.65) -> ConfigDict:
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
    # Over which pixels of a picture that EXIF turns its map is drawn: shown, stored.
    config.data.map_orientation = "shown"
    config.data.assumed = ConfigDict(dict(train_examples=ADE20K, classes=150))
    config.init_from = ""  # Workdir or file of an encoder, or of a segmentor.
    config.model = common.segmentor(size)
    config.augment = ConfigDict()
    # Shorter, longer side at most, times the scale; None: the shorter one is that of
    # model.image_size, the longer four times it, as published: (512, 2048).
    config.augment.fit = placeholder(tuple)
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
    config.inference.fit = placeholder(tuple)  # Before slide; None: as augment.fit.
    # From window to window, rows and columns; None: two thirds of model.image_size.
    config.inference.stride = placeholder(tuple)
    config.inference.scales = (1.0,)  # More: probabilities of all are averaged.
    config.inference.flip = False  # True: of the mirrored picture, too.
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


def camvid(config: ConfigDict) -> None:
    """CamVid's SegNet split: 11 classes, 480 x 360. Ours, for nothing is published."""
    steps_per_epoch = 367 // config.batch
    config.total_steps = 4000
    config.eval_epochs = 400 / steps_per_epoch
    config.checkpoint.every = 400
    config.optim.warmup_epochs = 200 / steps_per_epoch
    config.data.images = "{split}/*"
    config.data.labels = "{split}annot/*"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.reduce_zero_label = False
    config.data.ignore = (11,)
    config.data.class_list = "camvid"
    config.data.assumed = ConfigDict(dict(train_examples=367, classes=11))
    config.augment.fit = config.inference.fit = (352, 480)
    config.inference.stride = (235, 235)
    config.model.image_size = (352, 352)
    if "teacher" in config:
        config.teacher.model.image_size = (352, 352)


DATA = {"ade20k": lambda config: None, "camvid": camvid}


def recipe(args: ConfigDict) -> ConfigDict:
    """Fine-tuning: the teacher (b16, l16), and students without distillation."""
    rates = dict(lr=2e-5, layer_decay=0.95) if args.model == "l16" else {}
    return common.on(task(args.model, **rates), DATA, args.data or "ade20k")
