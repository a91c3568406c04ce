# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a page of runs shows of their logs, without a run."""

import numpy as np
import pytest

import runs
from g2sd_jax import stages, workdir
from g2sd_jax.pages import page, plots, sections

ROWS = [
    {"step": 1, "loss": 2.0, "loss/xent": 2.0, "lr": 0.1},
    {"step": 2, "loss": 1.0, "loss/xent": 1.0, "lr": 0.2, "images_per_sec": 30.0},
    {"step": 3, "loss": 0.5, "loss/xent": 0.5, "lr": 0.1, "images_per_sec": 50.0},
    {"step": 3, "images_per_sec": 40.0, "eval/top1": 60.0, "eval/count": 5},
]


def alternatives(built, *logs):
    """The plots of some logs, by the text that stands for each."""
    named = {f"run{i}": rows for i, rows in enumerate(logs)}
    return [
        [shown["alt"] for block in section.blocks for shown in block["pictures"]]
        for section in sections.curve_sections(named, built)
    ]


def test_what_was_logged_once_is_no_curve():
    assert alternatives([], ROWS) == [["loss"], ["images_per_sec", "lr"]]
    later = [*ROWS, {"step": 6, "eval/top1": 70.0}]
    assert alternatives([], ROWS, later)[1] == ["eval/top1"]


def test_a_term_that_is_the_loss_is_shown_once():
    assert sections.repeated_losses({"a": ROWS}) == {"loss/xent"}
    other = [{"step": 1, "loss": 2.0, "loss/xent": 1.5, "loss/hard": 0.5}]
    assert not sections.repeated_losses({"a": ROWS, "b": other})
    assert not sections.repeated_losses({"a": [{"step": 1, "loss": 2.0}]})


def test_the_table_has_a_run_a_column_with_size_and_speed(tmp_path):
    config = runs.small("finetune")
    workdir.write_json(tmp_path / "config.json", workdir.to_json_dict(config))
    stage = stages.build(config)
    table = sections.summary({"a": str(tmp_path)}, {"a": ROWS}, {"a": stage})
    assert table["header"] == ["", "a"]
    rows = dict(table["rows"])
    block = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 4 * 16
    outside = (48 * 16 + 16) + 17 * 16 + 16 + 2 * 16 + (16 * 5 + 5)
    assert rows["parameters"] == f"{2 * block + outside:,}"
    assert rows["images/s in training"] == "40" and rows["eval/top1"] == "60"
    assert rows["state"] == "not done" and "loss/xent" not in rows
    none = sections.summary({"a": str(tmp_path)}, {"a": []}, {"a": None})
    assert dict(none["rows"])["parameters"] == "–"


def test_an_axis_of_percent_ends_at_all_of_it():
    points = {"a": np.array([[1, 100.0], [2, 100.0]])}
    unit = {"top5": "top5 (%)", "ms": "ms"}
    sheets = plots.separate_curves({"top5": points, "ms": points}, unit)
    assert sheets["top5"].axes[0].get_ylim()[1] == 100
    assert sheets["ms"].axes[0].get_ylim()[1] > 100


@pytest.mark.parametrize("wide", [True, False])
def test_wide_pictures_are_scrolled(wide):
    section = page.Section("s", [page.picture("x", b"<svg/>", wide=wide)])
    assert ('<figure class="wide">' in page.html("t", [section])) == wide
