# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How alike two networks see the same pictures: linear CKA (arXiv 1905.00414)."""

import numpy as np
from jaxtyping import Float


def linear_cka(x: Float[np.ndarray, "B D"], y: Float[np.ndarray, "B E"]) -> float:
    """Centred kernel alignment of two sets of features: 0 unrelated, 1 alike.

    With centred columns it is |y'x|^2 / (|x'x| |y'y|), Frobenius norms: blind to
    rotation and to one common scale, not to the scale of single directions. It is not
    0 for unrelated features of few pictures, see `noise_level`.

    Args:
        x: features of B pictures.
        y: features of the same pictures.
    """
    return float(layerwise(x[None], y[None])[0, 0])


def layerwise(
    xs: Float[np.ndarray, "layers B D"], ys: Float[np.ndarray, "others B E"]
) -> Float[np.ndarray, "layers others"]:
    """Computes CKA of every layer of one network with every layer of another.

    Args:
        xs: features of B pictures, layer by layer.
        ys: features of the same pictures.
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
    """Estimates CKA of independent Gaussian features.

    The ratio of the expectations: E|y'x|^2 = m D E and E|x'x|^2 = m D (m + D + 1) with
    m = B - 1 degrees of freedom after centring.

    Args:
        count: B pictures.
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
