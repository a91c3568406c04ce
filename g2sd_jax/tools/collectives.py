# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the devices of a compiled program send each other in a step."""

import math
import re
from typing import NamedTuple

from g2sd_jax.tools import hlo

# Of the whole array: what one device sends when a ring of n devices does it.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}


class Collective(NamedTuple):
    """One of a program."""

    kind: str
    times: int  # a step
    shapes: tuple[hlo.Shape, ...]  # of the whole arrays that it combines
    group: int  # devices that take part together

    @property
    def bytes(self) -> int:
        return self.times * sum(shape.bytes for shape in self.shapes)

    @property
    def elements(self) -> int:
        return self.times * sum(shape.elements for shape in self.shapes)

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step, in a ring."""
        return SENT[self.kind](self.group) * self.bytes


def find(program: hlo.Program, devices: int) -> list[Collective]:
    """Every collective of a step; the two ends of an asynchronous one count once.

    A TPU also spreads one over several fusions, in a loop's body too, so that it hides
    behind their work; its pieces carry one channel and are one collective.
    """
    found = {}
    for computation, operation, times in program.run():
        scatters = "calls=%all-reduce-scatter" in operation.attributes
        for _, inside in program.inside(computation, operation):
            kind = inside.code.removesuffix("-start")
            if kind not in SENT:
                continue
            group = group_size(inside.attributes, devices)
            shapes = _whole(inside, kind, group)
            if scatters:  # How a TPU writes a reduce-scatter.
                kind = "reduce-scatter"
            channel = re.search(r"\bchannel_id=(\d+)", inside.attributes)
            piece = inside is not operation and channel
            key = channel[1] if piece else (operation.name, inside.name, len(found))
            before = found[key].times if key in found else times
            found[key] = Collective(kind, min(before, times), shapes, group)
    return [each for each in found.values() if each.group > 1]


def _whole(operation: hlo.Operation, kind: str, group: int) -> tuple[hlo.Shape, ...]:
    shapes = operation.shapes
    if operation.code.endswith("-start") and kind != "all-reduce":
        # (what went in, what comes out, and flags without sides)
        arrays = [shape for shape in shapes if shape.sides]
        shapes = tuple(arrays[len(arrays) // 2 :])
    if kind == "reduce-scatter":
        # What comes out is one device's part.
        shapes = tuple(shape._replace(sides=(group, *shape.sides)) for shape in shapes)
    return shapes


def group_size(attributes: str, devices: int) -> int:
    """Devices per group, from any of the ways XLA writes replica groups."""
    named = re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", attributes)
    if named:
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sides[name]) for name in re.findall(r"'(\w+)'", named[2]))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if counted:
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    return devices


def summary(found: list[Collective]) -> dict:
    """`{kind: {count, bytes, elements}}` of a step, `sent` by one device in all."""
    kinds = {}
    for each in found:
        row = kinds.setdefault(each.kind, dict(count=0, bytes=0, elements=0))
        row["count"] += each.times
        row["bytes"] += each.bytes
        row["elements"] += each.elements
    return dict(
        kinds=kinds,
        bytes=sum(each.bytes for each in found),
        sent_per_device=sum(each.sent for each in found),
    )
