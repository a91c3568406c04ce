# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step of every stage costs, read from its compiled program: no clock.

    python tests/step_costs.py [STAGE …]

records the costs of this checkout in `step_costs.json`, which
`measure/test_step_costs.py` compares with.
"""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import pytest

import runs
from g2sd_jax import parallel
from g2sd_jax.measure import compiled, shapes, step_speed, topology

FILE = pathlib.Path(__file__).with_suffix(".json")
STAGES = (*runs.STAGES, *runs.SEGMENTATION)
MOVES = 0.02  # Of a cost, beyond which it counts as another one.


def plan(stage: str, batch: int = 16, fsdp: int = 1, evaluate: bool = False) -> dict:
    """Plans a tiny stage for the CPU devices that are here."""
    mesh = dict(data=-1, fsdp=fsdp)
    config = shapes.without_weights(runs.small(stage, batch=batch, mesh=mesh))
    if "crop_area" in config.augment:
        # On CPUs crops are made in a loop over the batch, which has to be gathered.
        config.augment.crop_area = ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_speed, "SIDE", {"cpu": 64})
        patch.setattr(parallel, "SMALL", 64)
        return compiled.plan(config, topology.here(config), evaluate)


def of(figures: Mapping[str, Any]) -> dict[str, float]:
    """Picks the costs out of a plan's figures."""
    images = figures["batch"] / figures["devices"]
    return dict(
        flops_per_image=figures["flops_per_image"]["compiled"],
        bytes_per_image=figures["bytes_per_image"]["memory"],
        temporary_bytes_per_image=figures["memory"]["bytes_per_device"]["activations"]
        / images,
        transfers=figures["transfers"],
        parameters=figures["parameters"],
    )


def moved(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Says which costs differ by more than `MOVES`; counts may not differ at all."""
    lines = []
    for name, was in before.items():
        bound = 0 if name in ("transfers", "parameters") else MOVES * was
        if abs(now[name] - was) > bound:
            change = f" ({now[name] / was - 1:+.1%})" if was else ""
            lines.append(f"{name}: {was:,.0f} -> {now[name]:,.0f}{change}")
    return lines


def main(*stages: str) -> None:
    """Records the costs of the named stages, or of all; those of others stay."""
    recorded = dict(jax=jax.__version__, stages={})
    if stages:
        recorded = json.loads(FILE.read_text(encoding="utf-8"))
    for stage in stages or STAGES:
        recorded["stages"][stage] = of(plan(stage))
        FILE.write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import conftest  # noqa: F401  # Eight devices, as in the tests.

    jax.config.update("jax_disable_most_optimizations", False)
    main(*sys.argv[1:])
