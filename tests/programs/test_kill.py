# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A few kills of two stages; `kill_test.py` makes as many as one likes of any stage."""

import pytest

import kill_test


@pytest.mark.slow
@pytest.mark.parametrize("stage, statistics", [("linprobe", 2), ("pretrain", 0)])
def test_a_killed_run_ends_as_if_nobody_had_touched_it(
    stage, statistics, tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "")  # One device: eight take longer to start.
    told = kill_test.check(stage, kills=2, terms=1, seed=2, folder=tmp_path)
    assert told["kill ended with -9"] == 2 and told["term ended with 75"] == 1
    assert told["kill in a save"] and told["restarts that had to restore"]
    assert told["arrays of model_state"] == statistics  # Compared, where there are any.


def test_a_run_killed_once_ends_as_if_nobody_had_touched_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    events = kill_test.check("linprobe", kills=1, terms=0, seed=1, folder=tmp_path)
    assert events["kill ended with -9"] == 1


def test_a_difference_is_seen(tmp_path, monkeypatch):
    """Of two runs that end differently, the check names what and where."""
    one = dict(digests=["params sha256: a"], rows=[{"step": 1, "loss": 0.5}], done={})
    other = dict(one, rows=[{"step": 1, "loss": 0.25}])
    kill_test.compare("stage", one, one)
    with pytest.raises(AssertionError, match=r"stage: rows differ, first in .*0\.25"):
        kill_test.compare("stage", other, one)
    with pytest.raises(AssertionError, match="rows differ, first in its length"):
        kill_test.compare("stage", dict(one, rows=[]), one)
