# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch steps that ours are timed beside have the losses of ours."""

import importlib
import json
import pathlib

import pytest

import runs
import slow
from g2sd_jax.measure import step_speed

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
STAGES = ("pretrain", "generic_distill", "dmae_distill", "specific_cls")


@pytest.fixture
def compare_torch(monkeypatch):
    """The script, on products and turns that take no time."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    script = importlib.import_module("compare_torch")
    monkeypatch.setattr(step_speed, "SIDE", {"cpu": 64})
    monkeypatch.setattr(script, "TURNS", 1)
    return script


def run(script, tmp_path, *words):
    out = tmp_path / "table.md"
    status = script.main([f"--out={out}", "--seconds=0", *words])
    return status, json.loads(out.with_suffix(".json").read_text()), out.read_text()


@pytest.mark.parametrize("stage", slow.parameters(STAGES, quick=["generic_distill"]))
def test_losses_of_the_first_steps_agree(stage, compare_torch, tmp_path, monkeypatch):
    config = step_speed.untrained(runs.small(stage, batch=4), "scan")
    config.optim.lr = 1e-2  # So that the second loss tells of the first update.
    monkeypatch.setattr(compare_torch, "settings", lambda *_: config)
    words = [f"--recipes={stage}", "--torch=authors,eager"]
    status, figures, text = run(compare_torch, tmp_path, *words)
    assert status == 0 and not figures["skipped"]
    ours, authors, eager = figures["rows"]
    assert [row["program"] for row in figures["rows"]] == ["ours", "authors", "eager"]
    first, second = ours["losses"]
    assert abs(second - first) > 0.01 * abs(first)
    for row in (authors, eager):
        assert row["losses"] == [
            pytest.approx(first, rel=1e-5),
            pytest.approx(second, rel=1e-3),
        ]
    times = ours["images_per_s"] / authors["images_per_s"]
    assert ours["times_authors"] == pytest.approx(times)
    assert f"| {stage} | 4 | eager |" in text


def test_what_the_budget_does_not_hold_is_skipped(compare_torch, tmp_path):
    words = ["--recipes", "pretrain", "dmae_distill", "--budget=1", "--batches=8"]
    status, figures, text = run(compare_torch, tmp_path, *words)
    assert status == 0 and not figures["rows"]
    assert len(figures["skipped"]) == 2
    assert all("s are left" in line for line in figures["skipped"])
    assert "skipped pretrain at batch 8" in text


def test_losses_that_differ_are_no_row(compare_torch):
    bounds = compare_torch.AGREE["float32"]
    assert compare_torch.agree([1.0, 0.9], [1.0, 0.9005], bounds)
    assert not compare_torch.agree([1.0, 0.9], [1.0001, 0.9], bounds)
    assert not compare_torch.agree([1.0, 0.9], [1.0, 0.91], bounds)
