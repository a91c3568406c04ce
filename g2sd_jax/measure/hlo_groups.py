# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Where a compiled step's memory traffic comes from, by groups of operations.

A compiled operation carries the path of names it was traced under. A fusion carries the
path of one of the operations that it fuses, so the groups are right in the large alone.
"""

import re
from collections.abc import Mapping

from g2sd_jax.measure import hlo, hlo_work

PATH = re.compile(r'op_name="([^"]*)"')
PARTS = (  # (group, what its paths hold); the first that fits counts.
    ("optimiser", r"/optimiser/"),
    ("augmentation", r"/(\w+\()?augment\)?/"),
    ("products of blocks", r"blocks/.*/(qkv|proj|fc1|fc2)\b"),
    ("attention", r"blocks/.*\battn\b"),
    ("norms of blocks", r"blocks/.*\bnorm[12]\b"),
    ("GELU", r"blocks/.*\bmlp\b"),
    ("stacks of blocks", r"while/body/.*jit\(dynamic_(update_)?(index|slice)"),
    ("residual stream", r"blocks/"),
    ("patches", r"patch_embed|gather|scatter|concatenate|sort"),
)
TEACHER = re.compile(r"/(\w+\()?teacher\)?/")
PASSES = (
    ("recomputed", r"rematted_computation"),
    ("backward", r"transpose\("),
)


def bytes_by_group(program: hlo.Program) -> dict[str, int]:
    """Adds up the bytes to and from main memory by group, the largest first.

    Returns:
        Bytes of one device in one step, by names such as `attention, backward`.
    """
    groups: dict[str, int] = {}
    for computation, operation, times in program.run():
        memory, _ = hlo_work.traffic(operation, computation, program)
        if memory:
            name = group_of(path_of(operation, program))
            groups[name] = groups.get(name, 0) + times * memory
    return dict(sorted(groups.items(), key=lambda item: -item[1]))


def path_of(operation: hlo.Operation, program: hlo.Program) -> str:
    """The names an operation was traced under; of a fusion without any, its root's."""
    fused: Mapping[str, hlo.Operation] = program.fused(operation)
    for each in (operation, *reversed(fused.values())):
        path = PATH.search(each.attributes)
        if path:
            return path[1]
    return ""


def group_of(path: str) -> str:
    """Names the group that a path belongs to."""
    if not path:
        return "made by the compiler"
    part = next((name for name, regex in PARTS if re.search(regex, path)), "the rest")
    if part in ("optimiser", "augmentation"):
        return part
    if TEACHER.search(path):
        return f"teacher: {part}"
    phase = next((name for name, regex in PASSES if re.search(regex, path)), "forward")
    return f"{part}, {phase}"
