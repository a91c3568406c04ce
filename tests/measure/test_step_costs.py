# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""No change makes a training step dearer, or cheaper, without saying so."""

import json

import jax
import pytest

import slow
import step_costs

# What compilers make is measured.
pytestmark = pytest.mark.usefixtures("optimised")


def recorded(stage: str) -> dict:
    """The costs of a stage in the file; skips the test where there are none."""
    file = step_costs.FILE
    costs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if stage not in costs.get("stages", {}):
        pytest.skip(f"{stage}: python tests/step_costs.py records what a step costs")
    if jax.__version__ != costs["jax"]:
        pytest.skip(f"the costs were recorded with jax {costs['jax']}")
    return costs["stages"][stage]


# One that distils on masked pictures, and one of a task.
@pytest.mark.parametrize(
    "stage",
    slow.parameters(step_costs.STAGES, quick=["generic_distill", "specific_cls"]),
)
def test_a_step_costs_what_it_did(stage):
    before, now = recorded(stage), step_costs.of(step_costs.plan(stage))
    assert before["transfers"] == 0
    lines = step_costs.moved(before, now)
    assert not lines, (
        f"a step of {stage} has other costs: {'; '.join(lines)}. If that is meant, run "
        "python tests/step_costs.py, commit its file and say why in CHANGELOG.md."
    )


def test_a_move_of_three_percent_is_told():
    before = dict(flops_per_image=100.0, bytes_per_image=50.0, transfers=0)
    assert not step_costs.moved(before, dict(before, flops_per_image=101.9))
    now = dict(flops_per_image=103.0, bytes_per_image=50.0, transfers=1)
    assert step_costs.moved(before, now) == [
        "flops_per_image: 100 -> 103 (+3.0%)",
        "transfers: 0 -> 1",
    ]
