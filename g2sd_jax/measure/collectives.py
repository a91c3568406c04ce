# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Collectives of a compiled program: what its devices send each other in a step."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from g2sd_jax.measure import hlo

# Share of the combined array that one device sends in a ring of n devices.
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
    """One collective operation of a program."""

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
    """Lists the collectives of a step; the two ends of an asynchronous one count once.

    A TPU also spreads one over several fusions, in a loop's body too, so that it hides
    behind their work; its pieces carry one channel and are one collective.
    """
    collectives = {}
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
            key = (
                channel[1] if piece else (operation.name, inside.name, len(collectives))
            )
            before = collectives[key].times if key in collectives else times
            collectives[key] = Collective(kind, min(before, times), shapes, group)
    return [one for one in collectives.values() if one.group > 1]


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
    """Reads the devices per group, from any of the ways XLA writes replica groups."""
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


def summary(collectives: Sequence[Collective]) -> dict[str, Any]:
    """Adds up a step's by kind, and the bytes that one device sends in all."""
    kinds = {}
    for one in collectives:
        row = kinds.setdefault(one.kind, dict(count=0, bytes=0, elements=0))
        row["count"] += one.times
        row["bytes"] += one.bytes
        row["elements"] += one.elements
    return dict(
        kinds=kinds,
        bytes=sum(one.bytes for one in collectives),
        sent_per_device=sum(one.sent for one in collectives),
    )
