# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the recipes of detection share: COCO, as ViTDet and G2SD train on it."""

from ml_collections import ConfigDict

from g2sd_jax.configs import common

COCO = 117_266  # Training pictures with an object that is no crowd.
STEPS_PER_EPOCH = COCO // 64
STEPS = 184_375

# The keys of `common.detector` that size what looks at one region at a time.
REGION_HEADS = ("head_width", "head_convs", "hidden")
# What a smoke run makes smaller: canvases of 96 x 96, narrow heads, few regions.
SMALL_HEADS = dict(
    pretrain_grid=(4, 4),
    window=4,
    features=32,
    head_width=32,
    head_convs=1,
    hidden=32,
    anchor_sizes=(8, 16, 32, 64, 128),
    canonical_size=56,
)
SMALL = dict(
    model=common.SMALL_STUDENT | SMALL_HEADS | dict(global_blocks=(1, 3)),
    data=dict(max_boxes=8, mask_size=28),
    anchors=dict(count=64),
    proposals=dict(before=(100, 50), after=(50, 25)),
    regions=dict(count=32),
    inference=dict(detections=20, candidates=100),
)


def task(size: str) -> ConfigDict:
    """Everything but the stage: 100 epochs of 64 canvases of 1024 x 1024."""
    config = common.base()
    config.task = "detection"
    config.batch = 64
    config.total_steps = STEPS
    config.eval_epochs = 5000 / STEPS_PER_EPOCH
    config.checkpoint.every = 5000
    config.data.source = "coco"  # A json, and a folder or a tar of pictures.
    config.data.images = "{split}2017"
    config.data.annotations = "annotations/instances_{split}2017.json"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.assumed = ConfigDict(dict(train_examples=COCO, classes=80))
    config.data.max_boxes = 100  # Objects of a picture that a batch has room for.
    config.data.surplus = "refuse"  # More of them: refuse, sample.
    config.data.mask_size = 112  # Side of a mask, which fills its object's box.
    config.init_from = ""  # Workdir or file of an encoder, or of a detector.
    config.model = common.detector(size)
    config.augment = ConfigDict()
    config.augment.flip = 0.5  # Chance of a horizontal flip.
    config.augment.scale = (0.1, 2.0)  # Of the picture that just fits the canvas.
    config.anchors = ConfigDict()  # Those of a picture that objectness is learned from:
    config.anchors.count = 256
    config.anchors.share = 0.5  # Of those that stand for an object, at most.
    config.anchors.low = 0.3  # Overlap below which an anchor is background,
    config.anchors.high = 0.7  # from which it stands for an object.
    config.proposals = ConfigDict()  # In training, and at inference:
    config.proposals.before = (2000, 1000)  # of each level before suppression,
    config.proposals.after = (1000, 1000)  # of all levels after it.
    config.proposals.nms = 0.7  # Overlap above which the less likely one goes.
    config.regions = ConfigDict()  # Those of a picture that the heads learn from:
    config.regions.count = 512
    config.regions.share = 0.25  # Of those that stand for an object, at most.
    config.regions.overlap = 0.5  # From which a region stands for an object.
    config.loss = ConfigDict()
    # Pictures that share a divisor, as those of one of the authors' GPUs did.
    config.loss.group = 8
    config.inference = ConfigDict()
    config.inference.least = 0.05  # Probability that a detection exceeds.
    config.inference.nms = 0.5  # Overlap above which the less likely of a class goes.
    config.inference.detections = 100  # Of a picture; more of them count, too.
    config.inference.candidates = 4000  # Regions times classes before suppression.
    config.inference.library = "pycocotools"  # Or faster: the same AP in less time.
    config.optim = common.adamw(
        "detection",
        schedule="steps",
        lr=1e-4,
        wd=0.1,
        milestones=(163_889 / STEPS, 177_546 / STEPS),
        decay=0.1,
        warmup_epochs=250 / STEPS_PER_EPOCH,
        warmup_start=0.001,  # Share of the rate at step 0.
        layer_decay=0.7,
    )
    return config


def nuclei(config: ConfigDict) -> None:
    """The nuclei of the Data Science Bowl 2018. Ours, for nothing is published."""
    steps_per_epoch = 430 // 8
    config.batch = 8
    config.total_steps = 4000
    config.eval_epochs = 400 / steps_per_epoch
    config.checkpoint.every = 400
    config.optim.warmup_epochs = 100 / steps_per_epoch
    config.data.images = "images_{split}.tar"
    config.data.annotations = "instances_{split}.json.gz"
    config.data.assumed = ConfigDict(dict(train_examples=430, classes=1))
    config.data.max_boxes = 152  # The fullest picture has 151.
    config.data.mask_size = 56
    config.augment.scale = (0.5, 2.0)
    config.proposals.before = (500, 500)  # Of 12,288 anchors on the finest level.
    config.proposals.after = (500, 500)
    config.regions.count = 256
    config.inference.detections = 152
    config.inference.candidates = 500  # All there are, of one class.
    models = [config.model]
    if "teacher" in config:
        models.append(config.teacher.model)
    for model in models:
        model.image_size = (256, 256)
        model.window = 8  # Of 16 x 16 patches: nothing is padded.
        model.features = 64
        model.anchor_sizes = (8, 16, 32, 64, 128)
        model.canonical_size = 56
        model.roi_align = "exact"  # No dearer on maps that are hardly larger.
    config.model.update(head_width=64, head_convs=2, hidden=256)
    if config.model.adapter:
        config.model.adapter = 64


DATA = {"coco": lambda config: None, "nuclei": nuclei}


def recipe(args: ConfigDict) -> ConfigDict:
    """Fine-tuning: the teacher (b16), and students without distillation."""
    return common.on(task(args.model), DATA, args.data or "coco")
