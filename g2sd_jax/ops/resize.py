# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Resizing and pooling as matrix products: pictures, tables, feature maps, logits."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Float64, Shaped, UInt8


def cubic(distance: Float[ArrayLike, "*shape"], a: float) -> Float[ArrayLike, "*shape"]:
    """Evaluates Keys' kernel at distances in (stretched) pixels."""
    x = abs(distance)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return near * (x < 1) + far * ((x >= 1) & (x < 2))


def cubic_weights(
    size: int, new: int, stretched: float | None = None
) -> Float32[ArrayLike, "{new} {size}"]:
    """Weights of one axis: half-pixel centres, edge clamped, a = -0.75.

    Args:
        size: of the axis.
        new: wanted.
        stretched: the length that `size` is mapped to, if it is not `new`.
    """
    centre = (np.arange(new) + 0.5) * size / (stretched or new) - 0.5
    taps = np.floor(centre)[:, None] + np.arange(-1, 3)  # [new, 4]
    weights = cubic(taps - centre[:, None], a=-0.75)
    matrix = np.zeros((new, size))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    # A tap beyond the edge counts for the edge, so one column may get several.
    np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).astype(int)), weights)
    return jnp.asarray(matrix, jnp.float32)


def resize_bicubic(
    image: Float[ArrayLike, "*shape H W c"], size: tuple[int, int]
) -> Float[ArrayLike, "*shape {size[0]} {size[1]} c"]:
    """Interpolates bicubically as PyTorch: no antialias, corners not aligned.

    Args:
        image: floats.
        size: static (height, width) wanted.
    """
    rows = cubic_weights(image.shape[-3], size[0])
    columns = cubic_weights(image.shape[-2], size[1])
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("hH,...HWC->...hWC", rows, image, precision=exact)
    return jnp.einsum("wW,...hWC->...hwC", columns, image, precision=exact)


def linear_weights(size: int, new: int) -> Float64[np.ndarray, "{new} {size}"]:
    """Weights of one axis: half-pixel centres, edge clamped, two taps each way."""
    centre = np.maximum((np.arange(new) + 0.5) * size / new - 0.5, 0)
    low = np.minimum(np.floor(centre).astype(int), size - 1)
    upper = np.minimum(low + 1, size - 1)
    matrix, rows = np.zeros((new, size)), np.arange(new)
    np.add.at(matrix, (rows, low), 1 - (centre - low))
    np.add.at(matrix, (rows, upper), centre - low)
    return matrix


def bilinear(
    image: Float[ArrayLike, "B H W c"], size: tuple[int, int]
) -> Float[ArrayLike, "B {size[0]} {size[1]} c"]:
    """Interpolates bilinearly as PyTorch: no antialias, corners not aligned.

    Args:
        image: floats; the result has their dtype.
        size: static (height, width) wanted.
    """
    if image.shape[1:3] == tuple(size):
        return image
    return along_both(image, linear_weights, size)


def pool_weights(size: int, new: int) -> Float64[np.ndarray, "{new} {size}"]:
    """Weights of one axis: bin i is the mean of floor(i s/n) .. ceil((i + 1) s/n) - 1.

    Bins overlap where `new` does not divide `size`, and may be more than the pixels.
    """
    matrix = np.zeros((new, size))
    for i in range(new):
        first, end = i * size // new, -(-(i + 1) * size // new)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


def adaptive_pool(
    image: Float[ArrayLike, "B H W c"], count: int
) -> Float[ArrayLike, "B {count} {count} c"]:
    """Pools adaptively by averages, as PyTorch, to `count` rows and columns."""
    return along_both(image, pool_weights, (count, count))


def along_both(
    image: Float[ArrayLike, "B H W c"],
    weights: Callable[[int, int], np.ndarray],
    size: tuple[int, int],
) -> Float[ArrayLike, "B {size[0]} {size[1]} c"]:
    """Multiplies rows and columns by the matrices `weights(old, new)`."""
    rows, columns = (
        jnp.asarray(weights(old, new), image.dtype)
        for old, new in zip(image.shape[1:3], size, strict=True)
    )
    # The default of accelerators would round float32 logits to bfloat16.
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("hH,bHWc->bhWc", rows, image, precision=exact)
    return jnp.einsum("wW,bhWc->bhwc", columns, image, precision=exact)


def antialiased_weights(
    size: int, new: int, reach: int, kernel: Callable[[np.ndarray], np.ndarray]
) -> Float64[np.ndarray, "{new} {size}"]:
    """Weights of one axis as PyTorch's `antialias=True`, and Pillow, have them.

    The kernel is stretched where the axis shrinks, and what it would see beyond the
    edge is left out of the sum instead of clamped.

    Args:
        size: of the axis.
        new: wanted.
        reach: of the kernel to either side, in pixels.
        kernel: weight at a distance.
    """
    scale = size / new
    stretch = max(scale, 1.0)
    matrix = np.zeros((new, size))
    for i in range(new):
        centre = scale * (i + 0.5)
        first = max(int(centre - reach * stretch + 0.5), 0)
        end = min(int(centre + reach * stretch + 0.5), size)
        distance = (np.arange(first, end) - centre + 0.5) / stretch
        weights = kernel(distance)
        matrix[i, first:end] = weights / weights.sum()
    return matrix


def antialiased_cubic(size: int, new: int) -> Float64[np.ndarray, "{new} {size}"]:
    """Weights of one axis by Keys' kernel, a = -0.5, antialiased."""
    return antialiased_weights(size, new, 2, lambda x: cubic(x, a=-0.5))


def antialiased_linear(size: int, new: int) -> Float64[np.ndarray, "{new} {size}"]:
    """Weights of one axis by a triangle, antialiased."""
    return antialiased_weights(size, new, 1, lambda x: np.maximum(1 - abs(x), 0))


def offset_cubic(size: int, new: int) -> Float32[ArrayLike, "{new} {size}"]:
    """Weights of one axis as DINOv2's own code has them, a = -0.75.

    It asks PyTorch for the factor (new + 0.1) / size instead of a size, against
    rounding, so that every position is off by a little.
    """
    return cubic_weights(size, new, stretched=new + 0.1)


TABLES = {  # How a table of positions is resized -> weights of one axis.
    "bicubic": cubic_weights,
    "bicubic_antialias": antialiased_cubic,
    "bilinear_antialias": antialiased_linear,
    "bicubic_offset": offset_cubic,
}


def resize_pos_embed(
    table: Float[ArrayLike, "1 T D"],
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
    *,
    how: str = "bicubic",
    prefix: int = 1,
) -> Float[ArrayLike, "1 {prefix+to_grid[0]*to_grid[1]} D"]:
    """Resizes a position table for another image size.

    Args:
        table: the rows of other tokens first, then the grid row by row.
        from_grid: (rows, columns) of its positions.
        to_grid: (rows, columns) wanted.
        how: one of `TABLES`.
        prefix: rows of other tokens (the class token's), which stay as they are.
    """
    if tuple(from_grid) == tuple(to_grid):
        return table
    others, grid = table[:, :prefix], table[:, prefix:]
    grid = grid.reshape(1, *from_grid, -1)
    grid = along_both(grid, TABLES[how], tuple(to_grid))
    grid = grid.reshape(1, -1, table.shape[-1])
    return jnp.concatenate([others, grid], axis=1)


def crop_resize(
    image: UInt8[ArrayLike, "B H W c"],
    boxes: Shaped[ArrayLike, "B 4"],
    size: tuple[int, int],
    *,
    flip: Bool[ArrayLike, " B"] | None = None,
    within: Shaped[ArrayLike, "B 4"] | None = None,
) -> Float32[ArrayLike, "B {size[0]} {size[1]} c"]:
    """Cuts one box out of every image and resizes it to the whole levels of Pillow.

    Crop, then resize, as torchvision has it: what lies outside the box is not seen, as
    in Pillow's `crop(box).resize(size, BICUBIC)`. With `within` it is resize, then
    crop: all that lies inside of that serves the kernel, as in Pillow's
    `crop(within).resize(size, BICUBIC, box=box)`. The kernel (a = -0.5) is stretched
    where the box shrinks; levels are rounded and clipped after each direction.

    Args:
        image: canvases.
        boxes: y, x, height, width in pixels; none may be empty.
        size: static (height, width) wanted.
        flip: the results to mirror, which is free here.
        within: boxes around `boxes`: the pictures on their canvas.
    Returns:
        Whole grey levels 0..255.
    """
    flip = jnp.zeros(len(image), bool) if flip is None else flip
    within = boxes if within is None else within
    # On CPUs one image after another stays in the cache: 1.1 ms each for 384 x 512 to
    # 224 on two cores, where the batch at once took 1.5; 1.9 and 3.8 beside others.
    return jax.lax.platform_dependent(
        image,
        boxes.astype(jnp.float32),
        within.astype(jnp.float32),
        flip,
        cpu=functools.partial(one_by_one, size=size),
        default=functools.partial(all_at_once, size=size),
    )


def one_by_one(
    image: UInt8[ArrayLike, "B H W c"],
    boxes: Float32[ArrayLike, "B 4"],
    within: Float32[ArrayLike, "B 4"],
    flip: Bool[ArrayLike, " B"],
    size: tuple[int, int],
) -> Float32[ArrayLike, "B {size[0]} {size[1]} c"]:
    """Cuts one image after another, as CPUs do."""
    batch = (image, boxes, within, flip)
    return jax.lax.map(lambda example: cut(*example, size, float_product), batch)


def all_at_once(
    image: UInt8[ArrayLike, "B H W c"],
    boxes: Float32[ArrayLike, "B 4"],
    within: Float32[ArrayLike, "B 4"],
    flip: Bool[ArrayLike, " B"],
    size: tuple[int, int],
) -> Float32[ArrayLike, "B {size[0]} {size[1]} c"]:
    """Cuts all images at once, as accelerators do."""
    batch = (image, boxes, within, flip)
    return jax.vmap(lambda *example: cut(*example, size, bfloat16_product))(*batch)


def cut(
    image: UInt8[ArrayLike, "H W c"],
    box: Float32[ArrayLike, "4"],
    within: Float32[ArrayLike, "4"],
    flip: Bool[ArrayLike, ""],
    size: tuple[int, int],
    product: Callable[[str, Array, Array], Array],
) -> Float32[ArrayLike, "{size[0]} {size[1]} c"]:
    """Cuts one box out of one image and resizes it."""
    height, width, channels = image.shape
    rows, columns = (
        box_weights(box[axis], box[axis + 2], within[axis], within[axis + 2], *sides)
        for axis, sides in enumerate(((height, size[0]), (width, size[1])))
    )
    columns = jnp.where(flip, columns[::-1], columns)
    # Across first, as Pillow does but for some tall boxes. With the channels beside the
    # rows, then beside the columns, either direction is one matrix product.
    image = image.swapaxes(1, 2).reshape(height * channels, width)
    image = round_levels(product("wW,XW->Xw", columns, image)).reshape(height, -1)
    image = round_levels(product("hH,HX->hX", rows, image))
    return image.reshape(size[0], channels, size[1]).swapaxes(1, 2)


def box_weights(
    start: Float32[ArrayLike, ""],
    extent: Float32[ArrayLike, ""],
    low: Float32[ArrayLike, ""],
    length: Float32[ArrayLike, ""],
    size: int,
    new: int,
) -> Float32[ArrayLike, "{new} {size}"]:
    """Weights of one axis, for a box that may see the pixels low..low + length."""
    scale = extent / new
    centre = start + (jnp.arange(new) + 0.5) * scale
    pixels = jnp.arange(size) + 0.5
    distance = (pixels[None] - centre[:, None]) / jnp.maximum(scale, 1.0)
    # Visible are pixels that reach inside by more than rounding would.
    visible = (pixels > low - 0.499) & (pixels < low + length + 0.499)
    weights = jnp.where(visible[None], cubic(distance, a=-0.5), 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def round_levels(image: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
    """Rounds to whole levels 0..255, halves as Pillow does."""
    return jnp.clip(jnp.floor(image + 0.5), 0, 255)


def float_product(
    equation: str,
    weights: Float32[ArrayLike, "new old"],
    levels: Shaped[ArrayLike, "_ _"],
) -> Float32[ArrayLike, "_ _"]:
    """Multiplies weights and grey levels in float32."""
    return jnp.einsum(equation, weights, levels.astype(jnp.float32))


def bfloat16_product(
    equation: str,
    weights: Float32[ArrayLike, "new old"],
    levels: Shaped[ArrayLike, "_ _"],
) -> Float32[ArrayLike, "_ _"]:
    """Multiplies them in one pass of an accelerator's matrix unit.

    Grey levels are exact in bfloat16. Rounding the weights moves them by 0.2 on the
    mean, less than the rounding of the result, and a flat area by two at most.
    """
    weights, levels = weights.astype(jnp.bfloat16), levels.astype(jnp.bfloat16)
    return jnp.einsum(equation, weights, levels, preferred_element_type=jnp.float32)
