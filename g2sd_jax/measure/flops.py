# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The matrix products a function asks for, counted in its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jaxprs


def matmul(function: Callable, *arguments: Any) -> int:
    """Counts the FLOPs of all matrix products of one call, a multiply-add as two.

    Counted before any compiler touched it: what the method asks for (method, section
    14), whatever the hardware makes of it. Rematerialised products count as often as
    they are asked for.

    Args:
        function: any traceable function.
        *arguments: arrays or `ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            # Forms of one thing for several platforms: the plainest is what was asked.
            total += min(map(_count, _inner(equation)))
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(map(_count, _inner(equation)))
    return total


def _dot(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return (
        2
        * math.prod(equation.outvars[0].aval.shape)
        * math.prod(shape[axis] for axis in contracted)
    )


def _convolution(equation) -> int:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * kernel.size // outputs


def _inner(equation):
    """The jaxprs an equation calls: of a scan, a jit, a custom rule, a branch."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jaxprs.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jaxprs.Jaxpr):
                yield item
