# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""ViTDet Mask R-CNN: backbone, region proposals, heads of regions, and an adapter.

The stages of a detector are methods, for what lies between them (sampling in training,
suppression at inference) is no part of the network.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int32, Key
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.models import layers, roi_heads, vit, vitdet
from g2sd_jax.ops import anchors, roi_align, roi_windows

POOLED = vitdet.STRIDES[:4]  # Levels that regions are pooled from: not the coarsest.
# All of a map for every region, or a window of it, which some regions leave.
ROI_ALIGN = {"exact": roi_align.pool_each, "windows": roi_windows.pool_each}


class Geometry(NamedTuple):
    """The numbers of a detector that no parameter has."""

    anchor_sizes: tuple[float, ...]  # One for each level.
    anchor_ratios: tuple[float, ...]
    canonical_size: float  # Of `roi_align.level_of`.
    canonical_level: int
    box_bins: int
    mask_bins: int
    samples: int  # Of a bin; 0: adaptive, as published.
    roi_align: str = "exact"  # Of `ROI_ALIGN`.


class Adapter(nn.Module):
    """A convolution for each level, before a student's maps meet its teacher's."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[ArrayLike, "B _ _ E"], ...]
    ) -> tuple[Float[Array, "B _ _ {self.features}"], ...]:
        """Adapts every level."""
        init = layers.uniform((9 * maps[0].shape[-1]) ** -0.5)
        return tuple(
            nn.Conv(
                self.features,
                (3, 3),
                dtype=self.dtype,
                kernel_init=init,
                bias_init=init,
                name=f"conv.{i}",
            )(x)
            for i, x in enumerate(maps)
        )


class Detector(nn.Module):
    """The network; its fields are called as in detectron2's state dicts."""

    backbone: vitdet.Backbone
    proposal_generator: roi_heads.ProposalGenerator
    roi_heads: roi_heads.RoiHeads | None
    stu_adapter: Adapter | None
    geometry: Geometry

    def __call__(self, image: Float[ArrayLike, "B H W c"]) -> None:
        """Runs every part once, to initialise it."""
        maps = self.features(image).maps
        self.anchors(maps)
        if self.stu_adapter is not None:
            self.adapt(maps)
        if self.roi_heads is not None:
            sides = self.geometry.box_bins, self.geometry.mask_bins
            width = maps[0].shape[-1]
            pooled = (
                jnp.zeros((1, side, side, width), maps[0].dtype) for side in sides
            )
            self.roi_heads(*pooled)

    def features(
        self,
        image: Float[ArrayLike, "B H W c"],
        noise: Float[ArrayLike, "B depth 2"] | None = None,
    ) -> vitdet.Features:
        """The five maps of normalised pictures; `noise` is that of drop path."""
        return self.backbone(image, noise)

    def anchors(
        self, maps: tuple[Float[ArrayLike, "B _ _ E"], ...]
    ) -> tuple[tuple[Float32[Array, "B _"], ...], tuple[Float32[Array, "B _ 4"], ...]]:
        """Objectness logits and deltas of every level's anchors."""
        return self.proposal_generator(maps)

    def adapt(
        self, maps: tuple[Float[ArrayLike, "B _ _ E"], ...]
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """The maps as they are compared with a teacher's."""
        return self.stu_adapter(maps)

    def classify(
        self,
        maps: tuple[Float[ArrayLike, "B _ _ E"], ...],
        boxes: Float32[ArrayLike, "B R 4"],
    ) -> tuple[Float32[Array, "B R _"], Float32[Array, "B R _ 4"]]:
        """Class logits of regions, background last, and deltas for each class."""
        (pooled,) = pool_each(maps, boxes, self.geometry, box=boxes.shape[1])
        return self._classified(pooled)

    def segment(
        self,
        maps: tuple[Float[ArrayLike, "B _ _ E"], ...],
        boxes: Float32[ArrayLike, "B R 4"],
    ) -> Float32[Array, "B R side side C"]:
        """Mask logits of regions for each class."""
        (pooled,) = pool_each(maps, boxes, self.geometry, mask=boxes.shape[1])
        return self._segmented(pooled)

    def judge(
        self,
        maps: tuple[Float[ArrayLike, "B _ _ E"], ...],
        boxes: Float32[ArrayLike, "B R 4"],
        masks: int,
    ) -> tuple[
        Float32[Array, "B R _"],
        Float32[Array, "B R _ 4"],
        Float32[Array, "B _ side side C"],
    ]:
        """What `classify` says of all regions, and `segment` of the first ones.

        Args:
            maps: the levels' features.
            boxes: the regions, in pixels.
            masks: number of regions, from the first, that masks are predicted for.
        """
        for_boxes, for_masks = pool_each(
            maps, boxes, self.geometry, box=boxes.shape[1], mask=masks
        )
        return *self._classified(for_boxes), self._segmented(for_masks)

    def _classified(self, pooled):
        logits, deltas = self.roi_heads.classify(_rows(pooled))
        shape = pooled.shape[:2]
        return logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)

    def _segmented(self, pooled):
        logits = self.roi_heads.segment(_rows(pooled))
        return logits.reshape(*pooled.shape[:2], *logits.shape[1:])


def _rows(pooled):
    return pooled.reshape(-1, *pooled.shape[2:])


def pool_each(
    maps: Sequence[Float[ArrayLike, "B _ _ E"]],
    boxes: Float32[ArrayLike, "B R 4"],
    geometry: Geometry,
    **counts: int,
) -> tuple[Float[Array, "B _ _ _ E"], ...]:
    """Pools regions from the maps that their sizes choose.

    Args:
        maps: the levels' features.
        boxes: of the regions, in pixels.
        geometry: of the detector.
        **counts: `box`, `mask`, or both, the larger first: how many regions, from the
            first, are pooled to that head's bins.
    Returns:
        For each head [B, count, bins, bins, E].
    """
    bins = dict(box=geometry.box_bins, mask=geometry.mask_bins)
    return ROI_ALIGN[geometry.roi_align](
        maps[: len(POOLED)],
        boxes,
        level_of(boxes, geometry),
        POOLED,
        bins=[bins[head] for head in counts],
        counts=list(counts.values()),
        samples=geometry.samples,
    )


def level_of(
    boxes: Float32[ArrayLike, "*shape 4"], geometry: Geometry
) -> Int32[Array, "*shape"]:
    """The map, counted from 0, that each region is pooled from."""
    return roi_align.level_of(
        boxes,
        canonical_size=geometry.canonical_size,
        canonical_level=geometry.canonical_level,
        lowest=vitdet.LEVELS[0],
        highest=vitdet.LEVELS[len(POOLED) - 1],
    )


def leave_windows(
    boxes: Float32[ArrayLike, "B R 4"],
    geometry: Geometry,
    image_size: tuple[int, int],
    patch: int,
) -> Bool[Array, "B R"]:
    """Whether regions are longer than the window that they are pooled from.

    Args:
        boxes: in pixels.
        geometry: of a detector; one that pools from all of a map has no windows.
        image_size: (height, width) of the canvas.
        patch: of the backbone.
    """
    if geometry.roi_align == "exact":
        return jnp.zeros(boxes.shape[:2], bool)
    windows = roi_windows.look(
        boxes,
        level_of(boxes, geometry),
        grids(image_size, patch)[: len(POOLED)],
        POOLED,
        bins=geometry.box_bins,
    )
    return windows.leaves


def anchor_boxes(
    geometry: Geometry, image_size: tuple[int, int], patch: int
) -> tuple[Float32[Array, "_ 4"], ...]:
    """The anchors of every level of a canvas.

    Args:
        geometry: of a detector.
        image_size: (height, width) of the canvas.
        patch: of the backbone, the stride of its tokens.
    """
    return anchors.levels(
        grids(image_size, patch),
        vitdet.STRIDES,
        geometry.anchor_sizes,
        geometry.anchor_ratios,
    )


def grids(image_size: tuple[int, int], patch: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of every level."""
    rows, columns = (side // patch for side in image_size)
    coarse = rows // 2, columns // 2
    return (
        (4 * rows, 4 * columns),
        (2 * rows, 2 * columns),
        (rows, columns),
        coarse,
        tuple(-(-side // 2) for side in coarse),
    )


def detector(
    model: ConfigDict,
    classes: int,
    where: str = "config.model",
    adapter: int = 0,
    heads: bool = True,
    **compute_options: Any,
) -> Detector:
    """Builds the `Detector` of a config.

    Args:
        model: the config's group of keys.
        classes: of the data, background not counted.
        where: the group's name, for errors.
        adapter: channels of the teacher's maps; 0: there is no adapter.
        heads: False leaves out what no distillation reads of a teacher.
        **compute_options: of `layers.compute_options`.
    """
    check(model, where)
    form = compute_options.pop("attention", "auto")
    if form not in ("auto", "xla"):
        raise ValueError(
            f"config.attention={form}: windows with relative positions have one form, "
            "of XLA's products; use config.attention=auto."
        )
    dtype = compute_options.get("dtype", jnp.float32)
    net = vitdet.Net(
        **vit.size(model, where)._asdict(),
        image_size=tuple(model.image_size),
        pretrain_grid=tuple(model.pretrain_grid),
        window=model.window,
        global_blocks=tuple(model.global_blocks),
        channels=model.channels,
        mlp_ratio=model.mlp_ratio,
        norm_eps=vit.norm_eps(model),
        drop_path=model.drop_path,
        **compute_options,
    )
    rpn = roi_heads.RpnHead(model.features, len(model.anchor_ratios), dtype=dtype)
    second = None
    if heads:
        width, convs = model.head_width, model.head_convs
        second = roi_heads.RoiHeads(
            roi_heads.BoxHead(width, model.hidden, convs, dtype),
            roi_heads.BoxPredictor(classes),
            roi_heads.MaskHead(classes, width, convs, dtype),
        )
    return Detector(
        backbone=vitdet.Backbone(net, model.features),
        proposal_generator=roi_heads.ProposalGenerator(rpn),
        roi_heads=second,
        stu_adapter=Adapter(adapter, dtype) if adapter else None,
        geometry=Geometry(
            anchor_sizes=tuple(model.anchor_sizes),
            anchor_ratios=tuple(model.anchor_ratios),
            canonical_size=model.canonical_size,
            canonical_level=model.canonical_level,
            box_bins=model.box_bins,
            mask_bins=model.mask_bins,
            samples=model.samples,
            roi_align=model.roi_align,
        ),
    )


def check(model: ConfigDict, where: str) -> None:
    """Refuses settings that no detector can be made of."""
    size, (rows, columns) = vit.size(model, where), vit.grid(model, where)
    if size.patch != vitdet.STRIDES[2]:
        raise ValueError(
            f"{where}.patch={size.patch}: the levels of a detector are made of patches "
            f"of {vitdet.STRIDES[2]} pixels; use those."
        )
    if min(rows, columns) < 2:
        raise ValueError(
            f"{where}.image_size={tuple(model.image_size)} has no cell of stride 32; "
            "use a canvas of at least 32 x 32 pixels."
        )
    if len(model.anchor_sizes) != len(vitdet.LEVELS):
        raise ValueError(
            f"{where}.anchor_sizes={tuple(model.anchor_sizes)}: give one for each of "
            f"the strides {', '.join(map(str, vitdet.STRIDES))}."
        )
    blocks = tuple(model.global_blocks)
    if not all(0 <= block < size.depth for block in blocks):
        raise ValueError(
            f"{where}.global_blocks={blocks}: name blocks, counted from 0, of the "
            f"{size.depth} there are."
        )
    errors.one_of(f"{where}.roi_align", model.roi_align, ROI_ALIGN)


def init(model: Detector, key: Key[ArrayLike, ""]) -> dict[str, Any]:
    """Initialises the variables; no example is needed, the module knows its sizes."""
    net = model.backbone.net
    return model.init(key, jnp.zeros((1, *net.image_size, net.channels)))


def describe(config: ConfigDict) -> dict[str, Any]:
    """Describes this detector and its pictures to later commands."""
    grid = tuple(config.model.pretrain_grid)  # That of its table of positions.
    return dict(vit.describe(config), kind="detector", grid=grid)
