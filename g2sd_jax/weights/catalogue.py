# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The published weight files: their content, and which of them serve a purpose."""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

MAE = "https://github.com/facebookresearch/mae"
NC = "CC-BY-NC 4.0"
# Of the pixels that all of them were trained on (ImageNet, values in 0..1).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # Of those pictures, in pixels.
CONTENTS = {
    "encoder": "an encoder without decoder or head",
    "autoencoder": "an encoder and a decoder",
    "classifier": "a fine-tuned classifier of 1000 classes",
}
SIZES = {"base": "b16", "large": "l16", "huge": "h14"}
MD5 = {  # first digits, as published
    "mae_pretrain_vit_base.pth": "8cad7c",
    "mae_pretrain_vit_large.pth": "b8b06e",
    "mae_pretrain_vit_huge.pth": "9bdbb0",
    "mae_finetuned_vit_base.pth": "1b25e9",
    "mae_finetuned_vit_large.pth": "51f550",
    "mae_finetuned_vit_huge.pth": "2541f2",
}


class Published(NamedTuple):
    """One file anybody can download."""

    name: str
    holds: str  # one of CONTENTS
    size: str  # of models.vit.SIZES
    target: str | None  # pixels it was trained on: normalised, raw
    licence: str = NC
    source: str = MAE

    @property
    def md5(self) -> str | None:
        """The first digits of its MD5, where they are published."""
        return MD5.get(self.name)


def _published() -> Iterator[Published]:
    for word, size in SIZES.items():
        name = f"vit_{word}"
        yield Published(f"mae_pretrain_{name}.pth", "encoder", size, "normalised")
        full = f"mae_pretrain_{name}_full.pth"
        yield Published(full, "autoencoder", size, "normalised")
        yield Published(f"mae_visualize_{name}.pth", "autoencoder", size, "raw")
        yield Published(f"mae_finetuned_{name}.pth", "classifier", size, None)
    ganloss = "mae_visualize_vit_large_ganloss.pth"
    yield Published(ganloss, "autoencoder", "l16", "raw")


FILES = {file.name: file for file in _published()}


def by_name(path: str) -> Published | None:
    """The published file that `path` is called after; a download may add ` (1)`."""
    name = re.sub(r" ?\(\d+\)(?=\.pth$)", "", os.path.basename(path))
    return FILES.get(name)


def by_md5(digest: str) -> Published | None:
    """The published file with this MD5."""
    fits = (f for f in FILES.values() if f.md5 and digest.startswith(f.md5))
    return next(fits, None)


def suggestions(holds: str, size: str | None = None) -> str:
    """The names of published files with the wanted content, for an error.

    Args:
        holds: encoder, autoencoder or classifier; an autoencoder serves as encoder.
        size: of models.vit.SIZES; those of all sizes where this one is not published.
    """
    contents = {holds} | ({"autoencoder"} if holds == "encoder" else set())
    fits = [file for file in FILES.values() if file.holds in contents]
    same = [file for file in fits if file.size == size]
    return ", ".join(file.name for file in same or fits)
