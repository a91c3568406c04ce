# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How alike two networks see the same pictures: linear CKA (arXiv 1905.00414)."""

from collections.abc import Sequence

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Centred kernel alignment of two sets of features: 0 unrelated, 1 alike.

    With centred columns it is |y'x|^2 / (|x'x| |y'y|), Frobenius norms: blind to
    rotation and to one common scale, not to the scale of single directions. It is not
    0 for unrelated features of few pictures; `noise_level` says what it is.

    Args:
        x: [N, D] features of N pictures.
        y: [N, E] features of the same pictures.
    """
    return float(layerwise([x], [y])[0, 0])


def layerwise(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
    """[len(xs), len(ys)] CKA of every layer of one network with every of another.

    Args:
        xs: [N, D] features, one per layer.
        ys: [N, E] features of the same pictures, one per layer.
    """
    xs, ys = ([_centred(layer) for layer in layers] for layers in (xs, ys))
    sizes = [[_norm(layer) for layer in layers] for layers in (xs, ys)]
    return np.array(
        [
            [
                np.square(y.T @ x).sum() / (of_x * of_y)
                for y, of_y in zip(ys, sizes[1], strict=True)
            ]
            for x, of_x in zip(xs, sizes[0], strict=True)
        ]
    )


def noise_level(count: int, width: int, other: int) -> float:
    """What CKA is about for independent Gaussian features.

    The ratio of the expectations: E|y'x|^2 = m D E and E|x'x|^2 = m D (m + D + 1) with
    m = N - 1 degrees of freedom after centring.

    Args:
        count: N pictures.
        width: D.
        other: E.
    """
    freedom = count - 1
    spread = (freedom + width + 1) * (freedom + other + 1)
    return float(np.sqrt(width * other / spread))


def _centred(x):
    x = np.asarray(x, np.float64)  # In float32 a constant channel leaves a residue.
    return x - x.mean(axis=0, keepdims=True)


def _norm(x):
    return np.linalg.norm(x.T @ x)
