# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which batch each step is made from: from the first on, and after a restart."""

import numpy as np

import runs
from g2sd_jax import loop, nonfinite, stages
from g2sd_jax.data import order, source


def test_step_s_is_made_from_batch_s_after_a_restart_too(tmp_path, monkeypatch):
    """A run that left out batch 0 would look healthy."""
    trained = {}
    hold = nonfinite.Keeper.hold

    def remember(keeper, step, batch, state):
        trained[step] = np.asarray(batch["index"])
        hold(keeper, step, batch, state)

    monkeypatch.setattr(nonfinite.Keeper, "hold", remember)
    config = runs.small("linprobe", total_steps=2)
    loop.run(config, str(tmp_path / "run"))
    (tmp_path / "run" / "DONE").unlink()
    with config.unlocked():
        config.total_steps = 4
        config.optim.warmup_epochs = 0.0
    monkeypatch.setattr(loop.workdir, "check", lambda *_: None)  # It goes on longer.
    loop.run(config, str(tmp_path / "run"))
    dataset = source.load(config, config.data.train_split, stages.build(config).reads)
    batches = order.train_batches(dataset, config.batch, config.seed)
    expected = {step: next(batches)["index"] for step in range(1, 5)}
    assert trained.keys() == expected.keys()
    for step, index in expected.items():
        np.testing.assert_array_equal(trained[step], index)
