# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a state dict belong to which part of a network, by PyTorch name.

A new head is one line of `HEADS`: every error that summarises a file then names it.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

CLASS_HEAD, PIXEL_HEAD = "head", "decode_head.conv_seg"
MASK_HEAD = "roi_heads.mask_head.predictor"
HEADS = {  # Classifying layer -> what it is called in a summary.
    CLASS_HEAD: "a head",
    PIXEL_HEAD: "a segmentation head",
    MASK_HEAD: "a detection head",
}

# Heads that a distillation compares with its teacher; no later stage reads them.
FEATURE_HEADS = ("encoderfeature_pred", "decoderfeature_pred")  # of G2SD
ALIGNMENT_HEADS = "aligned_feature_projection_heads"  # of DMAE
FEATURE_HEAD_NAMES = tuple(rf"{head}\..*" for head in FEATURE_HEADS)
DISTILLATION_NAMES = (*FEATURE_HEAD_NAMES, rf"{ALIGNMENT_HEADS}\..*")
# Regexes of all that only pre-training uses: a fine-tuned network drops it.
PRETRAINING_NAMES = (
    r"decoder_.*",
    r"mask_token",
    *DISTILLATION_NAMES,
    r"pooler\.dense\..*",  # Of transformers' bare models; nothing was trained with it.
    r"classifier\..*",  # Of DINOv2's in transformers, on more than the class token.
)
POOLS = {  # Regex of the parts of a classifier -> the pools that read them.
    r"norm\..*": ("cls", "norm_avg", "attention"),
    r"fc_norm\..*": ("avg",),
    r"attn_pool\..*": ("attention",),
}
# Of PyTorch's state dicts; the first is not used here, the second is a constant.
BUFFERS = (r".*\.num_batches_tracked", r".*\.relative_position_index")


def unread(pool: str) -> tuple[str, ...]:
    """Regexes of the parts that a classifier of this `models.vit.POOLS` lacks."""
    return tuple(regex for regex, pools in POOLS.items() if pool not in pools)


def without(
    arrays: Mapping[str, np.ndarray], patterns: Iterable[str]
) -> dict[str, np.ndarray]:
    """The arrays whose names none of the regexes matches in full."""
    dropped = re.compile("|".join(patterns))
    return {name: a for name, a in arrays.items() if not dropped.fullmatch(name)}
