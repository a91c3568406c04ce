# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A parser of compiled programs: computations, operations, and how often they run.

XLA's own cost analysis counts the body of a loop once; here each computation carries
the number of times a step runs it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
BYTES |= {f"{sign}{bits}": max(1, bits // 8) for sign in "su" for bits in (2, 4, 8)}
BYTES |= {f"{sign}{bits}": bits // 8 for sign in "su" for bits in (16, 32, 64)}

SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
NAMED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(
    r"\b(?:branch|true|false)_computations?=\{?([^,}]*(?:,[^,}]*)*)\}?"
)
TILES = re.compile(r"([\d,]+):T\(([\d,]+)\)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Shape(NamedTuple):
    """One array; `space` 0 is a device's main memory, any other lies on the chip."""

    dtype: str
    sides: tuple[int, ...]
    space: int
    padded_sides: tuple[int, ...]  # To whole tiles, as a TPU's memory holds them.

    @property
    def elements(self) -> int:
        return math.prod(self.sides)

    @property
    def bytes(self) -> int:
        return self.elements * BYTES[self.dtype]

    @property
    def padded_bytes(self) -> int:
        return math.prod(self.padded_sides) * BYTES[self.dtype]


class Operation(NamedTuple):
    """One line: `%name = shapes code(operands), attributes`."""

    name: str
    code: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str  # what stands between the parentheses, as of a constant
    root: bool


class Program(NamedTuple):
    """Computations by name; `times` a step runs those that are not part of a fusion.

    A loop that ends when it likes, such as one that draws until it accepts, is counted
    once and named in `unknown`.
    """

    computations: Mapping[str, Mapping[str, Operation]]
    times: Mapping[str, int]
    unknown: tuple[str, ...]

    def run(self) -> Iterator[tuple[Mapping[str, Operation], Operation, int]]:
        """(its computation, operation, times a step) of all that is run by itself."""
        for name, times in self.times.items():
            computation = self.computations[name]
            for operation in computation.values():
                yield computation, operation, times

    def fused(self, operation: Operation) -> Mapping[str, Operation]:
        """The computation that a fusion is; empty for any other operation."""
        if operation.code != "fusion":
            return {}
        return self.computations[called(operation)["calls"]]

    def inside(self, computation, operation: Operation) -> Iterator:
        """(computation, operation) of itself and all that it fuses, nested or not."""
        yield computation, operation
        fused = self.fused(operation)
        for each in fused.values():
            yield from self.inside(fused, each)


def read(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    text = re.sub(r"/\*.*?\*/", "", text)
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (named := NAMED.match(line)):
            operation = _operation(named[1], line[named.end() :], "ROOT " in line)
            current[operation.name] = operation
    times, unknown = dict.fromkeys(computations, 0), []
    _visit(computations, entry, 1, times, unknown)
    times = {name: count for name, count in times.items() if count}
    return Program(computations, times, tuple(unknown))


def called(operation: Operation) -> dict[str, str]:
    """Returns `{attribute: computation}` of a fusion, a loop, a call."""
    return dict(CALLED.findall(operation.attributes))


def shapes_of(text: str) -> tuple[Shape, ...]:
    """Reads every array in a shape, in order: a tuple's one after the other."""
    shapes = []
    for dtype, sides, layout in SHAPE.findall(text):
        if dtype in BYTES or dtype.startswith("f8"):
            BYTES.setdefault(dtype, 1)
            space = re.search(r"S\((\d+)\)", layout)
            shape = tuple(int(side) for side in sides.split(",") if side)
            where = int(space[1]) if space else 0
            shapes.append(Shape(dtype, shape, where, _padded(shape, layout)))
    return tuple(shapes)


def _padded(sides: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The sides in whole tiles, as in `2,1,0:T(8,128)`: axis 2 lies innermost."""
    tiles = TILES.match(layout)
    if not tiles:
        return sides
    axes, tile = ([int(n) for n in part.split(",")] for part in tiles.groups())
    padded = [*sides]
    for axis, length in zip(axes, reversed(tile), strict=False):
        padded[axis] += -padded[axis] % length
    return tuple(padded)


def _operation(name: str, rest: str, root: bool) -> Operation:
    at = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:at], rest[at:].lstrip()
    begin = rest.index("(")
    end = _closing(rest, begin)
    inside = rest[begin + 1 : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    code, attributes = rest[:begin], rest[end + 1 :]
    return Operation(name, code, shapes_of(shape), operands, attributes, inside, root)


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` closes."""
    depth = 0
    for at in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
    raise ValueError(f"unbalanced parentheses in a compiled program: {text[:80]}")


def _visit(computations, name: str, count: int, times: dict, unknown: list) -> None:
    times[name] += count
    for operation in computations[name].values():
        names, ahead = called(operation), []
        if operation.code == "while":
            trips = trip_count(operation, computations)
            unknown += [operation.name] if trips is None else []
            ahead = [(names["body"], count * (trips or 1))]
        elif operation.code in ("call", "async-start"):
            ahead = [(names.get("to_apply") or names.get("calls"), count)]
        elif operation.code == "conditional":
            # Which branch is taken is not known here; a bound counts each.
            branches = BRANCHES.findall(operation.attributes)
            targets = re.findall(r"%?([\w.\-]+)", " ".join(branches))
            ahead = [(branch, count) for branch in targets if branch in computations]
        for target, rounds in ahead:
            _visit(computations, target, rounds, times, unknown)


def trip_count(
    loop: Operation, computations: Mapping[str, Mapping[str, Operation]]
) -> int | None:
    """Counts the rounds of a loop that starts at 0, None where they are unknown.

    By the compiler's own figure, or else by the bound in the loop's condition.
    """
    trips = TRIPS.search(loop.attributes)
    if trips:
        return int(trips[1])
    condition = computations[called(loop)["condition"]].values()
    ends = [each for each in condition if each.root and each.code == "compare"]
    bounds = [each.literal for each in condition if each.code == "constant"]
    counts = ends and "direction=LT" in ends[0].attributes and len(bounds) == 1
    return int(bounds[0]) if counts and bounds[0].isdigit() else None
