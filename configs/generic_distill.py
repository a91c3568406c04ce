# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic distillation, stage 1 of G2SD: the student learns the teacher's features.

    g2sd train --config=generic_distill:student=s16 --workdir=runs/gd_s \
        --config.teacher.checkpoint=runs/mae_b

Published (G2SD, arXiv 2302.14771): 300 epochs, batch 2 x 8 x 256; with both stages
ViT-S reaches 82.5 % and ViT-Ti 77.0 % top-1 on ImageNet-1k. A loss near 0.02 is
healthy; one stuck near 0.2 is what a teacher with a random decoder gives.

Without a decoder, from any encoder (DINOv2, CLIP, …), whose architecture is read:

    g2sd train --config=generic_distill:paper=proteus,student=s16 --workdir=runs/pr_s \
        --config.teacher.checkpoint=dinov2_large

`paper=` gives the published settings of other papers, as far as this stage has them:

maskdistill (arXiv 2210.10615): the full picture to the teacher (CLIP), 40 % of the
patches hidden from the student, smooth-L1 on the standardised last features of the
hidden ones, 300 epochs. Theirs: blocks of patches hidden and mask tokens inside of the
encoder, with relative positions; here single patches, and a decoder. Their learning
rate was not found; it is MAE's. ViT-B from CLIP ViT-B/16 85.0 %.

tinymim (arXiv 2301.01296): nothing hidden; KL of the relations query-key and
value-value of one block: for a ViT-B that of block 18 of an MAE ViT-L, which then is
the teacher of smaller ones; batch 4 x 8 x 64, 300 epochs, warm-up 15, base rate 1.5e-4
(the authors' README). Theirs: drop path 0.1. ViT-B 85.0 %, ViT-S 83.0 %, Ti 75.8 %.

proteus (arXiv 2407.10366): nothing hidden; mean squares of all tokens, and of the class
token once more, each with weight 1; 4 x 128 pictures, 300 epochs, warm-up 5 (the
authors' script). Theirs: a head (norm, linear) per term, DeiT's augmentation, and a
third term, on the patches of a masked picture, which is left out here. ViT-S 81.8 %,
ViT-Ti 75.2 % (linear probe).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from g2sd_jax.configs import common

PAPERS = ("g2sd", "maskdistill", "tinymim", "proteus")


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(
        arguments, student="s16", teacher="", target="", paper="g2sd"
    )
    if args.paper not in PAPERS:
        raise ValueError(
            f"recipe argument paper={args.paper!r} is not known; known: "
            f"{', '.join(PAPERS)}"
        )
    target = args.target or ("decoder" if args.paper == "g2sd" else "encoder")
    size = common.teacher_size(args.teacher, "b16")
    config = common.base()
    config.stage = "generic_distill"
    config.batch = 4096  # 2 x 8 x 256 in the original
    config.total_epochs = 300.0
    config.model = common.mae(args.student, common.decoder(args.student))
    config.mask_ratio = 0.75
    config.teacher = ConfigDict()
    config.teacher.model = common.mae(size, common.decoder(size))
    config.teacher.checkpoint = ""  # Workdir or file with a decoder; random:SEED.
    config.teacher.target = "normalised"  # What it was trained on: normalised, raw.
    config.teacher.mean = ()  # That its pictures are normalised by; (): the data's.
    config.teacher.std = ()
    config.distill = ConfigDict()
    config.distill.target = target  # decoder, encoder
    config.distill.view = "visible"  # What the teacher sees: visible (patches), full.
    config.distill.tokens = "all"  # all (with the class token), masked, visible
    # Of its decoder, counted from 1; None: the middle one, which is 4 of the paper's 8.
    config.distill.teacher_block = placeholder(int)
    config.distill.beta = 2.0  # Where smooth-L1 turns linear.
    config.distill.feature = 1.0  # Weights of the terms; 0 = not built.
    config.distill.encoder_feature = 0.0
    config.distill.relation = 0.0
    config.distill.relation_groups = 12
    # Of queries, keys and values: qk is an attention map.
    config.distill.relation_pairs = common.RELATION_PAIRS
    config.distill.relation_student_blocks = ()  # From 0, in pairs; (): from the first.
    config.distill.relation_teacher_blocks = ()
    config.distill.relation_distance = "kl"  # kl, l2
    config.init_from = ""  # Workdir or file of the same architecture; "" = fresh.
    config.monitor = common.monitor()
    config.augment = common.augment(crop_area=(0.2, 1.0), flip=0.5)
    config.optim = common.adamw("pretrain", min_lr=2.5e-6, b2=0.95, warmup_epochs=10.0)
    common.scale_lr(config, 1.5e-4)
    small = common.SMALL_TEACHER | common.SMALL_DECODER
    if target == "encoder":
        learn_encoder(config, size)
        small = common.SMALL_TEACHER
    adapt = {"maskdistill": maskdistill, "tinymim": tinymim, "proteus": proteus}
    if args.paper in adapt:
        adapt[args.paper](config)
    changes = {}
    if config.distill.relation_teacher_blocks:  # Of 4 and 6 blocks there.
        blocks = dict(relation_student_blocks=(3,), relation_teacher_blocks=(4,))
        changes = dict(distill=dict(blocks, relation_groups=4))
    return common.smoke(
        config,
        args,
        model=common.SMALL_STUDENT | common.SMALL_DECODER,
        teacher=dict(model=small, checkpoint=common.RANDOM),
        monitor=common.SMALL_MONITOR,
        **changes,
    )


def learn_encoder(config: ConfigDict, size: str) -> None:
    """Any encoder as teacher: its last features, of the full picture."""
    config.teacher.model = common.encoder(size)
    del config.teacher.target, config.distill.encoder_feature
    config.distill.view = "full"
    config.distill.teacher_block = 0  # Of its encoder, from 1; 0: after its last norm.
    config.distill.distance = "smooth_l1"  # smooth_l1, l2
    config.distill.standardise = True  # The target, over channels.
    config.distill.class_token = 0.0  # Weight of the class token's features alone.


def maskdistill(config: ConfigDict) -> None:
    """Sets what MaskDistill publishes."""
    config.mask_ratio = 0.4
    config.distill.tokens = "masked"
    config.batch = 2048
    config.optim.lr = 1.5e-4 * 2048 / 256


def tinymim(config: ConfigDict) -> None:
    """Sets what TinyMIM publishes: a ViT-L teaches ViT-B, and that the smaller ones."""
    depth, heads = (18, 16) if config.model.size == "b16" else (12, 12)
    config.mask_ratio = 0.0
    config.distill.feature = 0.0
    config.distill.relation = 2.0  # Its sum of two pairs; here their mean.
    config.distill.relation_pairs = ("qk", "vv")
    config.distill.relation_groups = heads
    config.distill.relation_student_blocks = (11,)
    config.distill.relation_teacher_blocks = (depth - 1,)
    config.batch = 2048  # 4 x 8 x 64
    config.optim.lr = 1.5e-4 * 2048 / 256
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 15.0


def proteus(config: ConfigDict) -> None:
    """Sets what Proteus publishes, but for its masked patches."""
    config.mask_ratio = 0.0
    config.distill.distance = "l2"
    config.distill.standardise = False
    config.distill.class_token = 1.0
    config.batch = 512  # 4 x 128
    config.optim.lr = 5e-4 * 512 / 512
    config.optim.min_lr = 1e-5
    config.optim.b2 = 0.999
    config.optim.warmup_epochs = 5.0
