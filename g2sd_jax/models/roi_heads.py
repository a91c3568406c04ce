# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The heads of Mask R-CNN: objectness of anchors, classes, boxes, masks of regions.

What is decided by numbers, logits and deltas, is float32 in every mode: in bfloat16
many of them would be equal.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32

from g2sd_jax.models import layers, pyramid, vitdet

normal = nn.initializers.normal


class RpnHead(nn.Module):
    """Objectness and box deltas of every anchor, by one head for all levels."""

    features: int
    ratios: int  # Anchors of a cell.
    convs: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[ArrayLike, "B _ _ E"], ...]
    ) -> tuple[tuple[Float32[Array, "B _"], ...], tuple[Float32[Array, "B _ 4"], ...]]:
        """Returns logits and deltas of each level, ordered by row, column, ratio."""
        conv = lambda features, side, dtype, name: nn.Conv(
            features, (side, side), dtype=dtype, kernel_init=normal(0.01), name=name
        )
        names = [
            f"conv.conv{i}" if self.convs > 1 else "conv" for i in range(self.convs)
        ]
        convs = [conv(self.features, 3, self.dtype, name) for name in names]
        objectness = conv(self.ratios, 1, jnp.float32, "objectness_logits")
        anchor_deltas = conv(4 * self.ratios, 1, jnp.float32, "anchor_deltas")
        logits, deltas = [], []
        for x in maps:
            for layer in convs:
                x = nn.relu(layer(x))
            logits.append(objectness(x).reshape(x.shape[0], -1))
            deltas.append(anchor_deltas(x).reshape(x.shape[0], -1, 4))
        return tuple(logits), tuple(deltas)


class ProposalGenerator(nn.Module):
    """Holds the head under detectron2's name."""

    rpn_head: RpnHead

    def __call__(
        self, maps: tuple[Float[ArrayLike, "B _ _ E"], ...]
    ) -> tuple[tuple[Float32[Array, "B _"], ...], tuple[Float32[Array, "B _ 4"], ...]]:
        """Applies it."""
        return self.rpn_head(maps)


def he_normal(outputs: int, side: int) -> nn.initializers.Initializer:
    """He's initialisation by the outputs, for a convolution before a ReLU."""
    return normal((2 / (outputs * side**2)) ** 0.5)


class BoxHead(nn.Module):
    """Convolutions with norms, then one hidden layer: a vector for each region."""

    features: int
    hidden: int
    convs: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "n bins bins E"]
    ) -> Float[Array, "n {self.hidden}"]:
        for i in range(self.convs):
            init = he_normal(self.features, 3)
            name = f"conv{i + 1}"
            conv = vitdet.ConvNorm(self.features, 3, init, self.dtype, name=name)
            x = nn.relu(conv(x))
        # In PyTorch's order (channel, row, column), so that its kernel needs no other.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        init = layers.uniform((3 / x.shape[-1]) ** 0.5)
        dense = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="fc1")
        return nn.relu(dense(x))


class BoxPredictor(nn.Module):
    """Class logits, background last, and the deltas of each class's box."""

    classes: int

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "n D"]
    ) -> tuple[Float32[Array, "n _"], Float32[Array, "n {self.classes} 4"]]:
        x = x.astype(jnp.float32)
        score = nn.Dense(self.classes + 1, kernel_init=normal(0.01), name="cls_score")
        delta = nn.Dense(4 * self.classes, kernel_init=normal(0.001), name="bbox_pred")
        return score(x), delta(x).reshape(x.shape[0], self.classes, 4)


class MaskHead(nn.Module):
    """Convolutions with norms, one doubling of the size, a mask for each class."""

    classes: int
    features: int
    convs: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "n bins bins E"]
    ) -> Float32[Array, "n 2*bins 2*bins {self.classes}"]:
        for i in range(self.convs):
            init = he_normal(self.features, 3)
            name = f"mask_fcn{i + 1}"
            conv = vitdet.ConvNorm(self.features, 3, init, self.dtype, name=name)
            x = nn.relu(conv(x))
        # What PyTorch takes for the outputs of a transposed convolution: its inputs.
        init = he_normal(x.shape[-1], 2)
        deconv = pyramid.Deconvolution(self.dtype, self.features, init, name="deconv")
        predictor = nn.Conv(
            self.classes,
            (1, 1),
            dtype=jnp.float32,
            kernel_init=normal(0.001),
            name="predictor",
        )
        return predictor(nn.relu(deconv(x)).astype(jnp.float32))


class RoiHeads(nn.Module):
    """The heads of the second stage, under detectron2's names."""

    box_head: BoxHead
    box_predictor: BoxPredictor
    mask_head: MaskHead

    def __call__(
        self,
        for_boxes: Float[ArrayLike, "n bins bins E"],
        for_masks: Float[ArrayLike, "m mask_bins mask_bins E"],
    ) -> tuple[Array, Array, Array]:
        """Class logits, deltas and mask logits of pooled regions; to initialise."""
        return *self.classify(for_boxes), self.segment(for_masks)

    def classify(
        self, pooled: Float[ArrayLike, "n bins bins E"]
    ) -> tuple[Float32[Array, "n _"], Float32[Array, "n _ 4"]]:
        """Class logits, and deltas for each class."""
        return self.box_predictor(self.box_head(pooled))

    def segment(
        self, pooled: Float[ArrayLike, "n bins bins E"]
    ) -> Float32[Array, "n 2*bins 2*bins _"]:
        """Mask logits of each class."""
        return self.mask_head(pooled)
