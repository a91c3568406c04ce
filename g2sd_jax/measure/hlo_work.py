# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Products and memory traffic of one device in a step of a compiled program."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from g2sd_jax.measure import hlo

# Names for what is there already, and operations that hold others.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
FREE |= {"while", "conditional", "call", "partition-id", "replica-id", "async-start"}
FREE |= {"async-update", "async-done", "opt-barrier", "add-dependency", "domain"}
UNCOPIED = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
SLICES = {"dynamic-slice", "slice", "gather"}
TRANSFERS = {"infeed", "outfeed", "send", "recv"}
CALLBACKS = re.compile(r'custom_call_target="[^"]*(callback|MoveToHost|MoveToDevice)')
PRODUCTS = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv|dot)', re.IGNORECASE)


class Work(NamedTuple):
    """The work of one device in one step."""

    flops: int | None  # of matrix products; None if a library's own are among them
    memory: int  # bytes to and from the device's main memory
    all: int  # and those that stay on the chip, as the compiler's own figure counts


def measure(program: hlo.Program) -> Work:
    """Adds up products and traffic, loops included as often as they run."""
    products = memory = everything = 0
    hidden = False
    for computation, operation, times in program.run():
        hidden |= bool(PRODUCTS.search(operation.attributes))
        for around, each in program.inside(computation, operation):
            products += times * flops(each, around)
        main, total = traffic(operation, computation, program)
        memory, everything = memory + times * main, everything + times * total
    return Work(None if hidden else products, memory, everything)


def transfers(program: hlo.Program) -> int:
    """Counts what a step sends to its host or waits for from it, callbacks included."""
    return sum(
        times
        for _, operation, times in program.run()
        if operation.code in TRANSFERS or CALLBACKS.search(operation.attributes)
    )


def flops(operation: hlo.Operation, computation: Mapping[str, hlo.Operation]) -> int:
    """Counts the FLOPs of a matrix product, a multiply-add as two; 0 of all else."""
    if operation.code not in ("dot", "convolution"):
        return 0
    left, right = (computation[name].shapes[0].sides for name in operation.operands)
    out = operation.shapes[0].sides
    if operation.code == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
        axes = [int(axis) for axis in dims[1].split(",") if axis]
        return 2 * math.prod(out) * math.prod(left[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    of = lambda sides, names, name: sides[names.index(name)]
    count = of(out, labels[3], "b") * of(out, labels[3], "f")
    count *= of(right, labels[2], "i")
    for index in range(len(out) - 2):
        sides = [
            of(side, names, str(index))
            for side, names in zip((left, right, out), labels.groups(), strict=True)
        ]
        count *= touched(*sides, _window(operation.attributes, index))
    return 2 * count


def _window(attributes: str, index: int) -> dict[str, int]:
    """Of one spatial dimension: stride, low padding, both dilations."""
    inside = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", inside[1] if inside else ""))
    pick = lambda name: fields[name].split("x")[index] if name in fields else None
    low = pick("pad")
    return dict(
        stride=int(pick("stride") or 1),
        low=int(low.split("_")[0]) if low else 0,
        spread=int(pick("lhs_dilate") or 1),
        apart=int(pick("rhs_dilate") or 1),
    )


def touched(side: int, kernel: int, out: int, window: Mapping[str, int]) -> int:
    """Counts pairs (output, kernel position) of one dimension that meet an input.

    A TPU writes a product of many matrices as a convolution over the many: dilated so
    far that each output meets one position only.
    """
    at = np.arange(out)[:, None] * window["stride"] - window["low"]
    at = at + np.arange(kernel)[None] * window["apart"]
    inside = (at >= 0) & (at < (side - 1) * window["spread"] + 1)
    return int((inside & (at % window["spread"] == 0)).sum())


def traffic(
    operation: hlo.Operation,
    computation: Mapping[str, hlo.Operation],
    program: hlo.Program,
) -> tuple[int, int]:
    """Counts the bytes of main memory, and of any memory, that an operation touches.

    Arrays count in whole tiles: three channels take the room of 128 if they lie
    innermost.
    """
    code = operation.code
    if code in FREE or code.endswith("-start"):
        return 0, 0
    if code == "custom-call" and any(name in operation.attributes for name in UNCOPIED):
        return 0, 0
    moved = []  # (bytes, space) of everything read or written
    if code.endswith("-done"):
        # Counted at its end: the bytes that arrive, and as many of the source.
        arrived = operation.shapes
        start = computation[operation.operands[0]]
        source = computation[start.operands[0]].shapes if start.operands else arrived
        size, source_size = (
            sum(shape.padded_bytes for shape in side) for side in (arrived, source)
        )
        moved = [(shape.padded_bytes, shape.space) for shape in arrived]
        moved += [(min(size, source_size), shape.space) for shape in source[:1]]
    elif code == "fusion":
        moved = _of_fusion(operation, computation, program)
    elif code in SLICES or code == "dynamic-update-slice":
        piece = operation.shapes
        if code == "dynamic-update-slice":
            piece = computation[operation.operands[1]].shapes
        moved = 2 * [(shape.padded_bytes, shape.space) for shape in piece]
    else:
        shapes = [*operation.shapes]
        for name in operation.operands:
            shapes += computation[name].shapes
        moved = [(shape.padded_bytes, shape.space) for shape in shapes]
    main = sum(size for size, space in moved if space == 0)
    return main, sum(size for size, space in moved if space <= 1)


def _of_fusion(operation, computation, program) -> list[tuple[int, int]]:
    """A fusion reads its parameters, or the slices it takes of them, and writes."""
    moved, fused = [], program.fused(operation)
    for position, name in enumerate(operation.operands):
        operands = computation[name].shapes
        size = _read(fused, position, program)
        if operands:
            total = sum(shape.padded_bytes for shape in operands)
            moved.append((total if size is None else size, operands[0].space))
    roots = [each for each in fused.values() if each.root]
    outputs = [fused[name] for name in roots[0].operands]
    outputs = outputs if roots[0].code == "tuple" else roots
    # A tuple's output may be several arrays; they come in order.
    shapes = list(operation.shapes)
    for output in outputs:
        mine, shapes = shapes[: len(output.shapes)], shapes[len(output.shapes) :]
        while output.code == "bitcast":
            output = fused[output.operands[0]]
        size = sum(shape.padded_bytes for shape in mine)
        if output.code == "dynamic-update-slice":
            size = fused[output.operands[1]].shapes[0].padded_bytes
        if output.code != "parameter":
            moved.append((size, mine[0].space if mine else 0))
    return moved


def _read(fused, position: int, program) -> int | None:
    """Bytes a fusion reads of one parameter, if only slices of it; None: all of it."""
    parameter = next(
        each.name
        for each in fused.values()
        if each.code == "parameter" and int(each.literal) == position
    )
    total, ahead = 0, [parameter]
    while ahead:
        name = ahead.pop()
        for user in fused.values():
            for at in (at for at, used in enumerate(user.operands) if used == name):
                if user.code == "bitcast":
                    ahead.append(user.name)
                elif user.code in SLICES and at == 0:
                    total += user.shapes[0].padded_bytes
                elif user.code == "fusion":
                    part = _read(program.fused(user), at, program)
                    if part is None:
                        return None
                    total += part
                elif user.code != "dynamic-update-slice" or at != 0:
                    return None
    return total
