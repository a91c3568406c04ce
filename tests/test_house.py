# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Bounds on the figures of `house.py`."""

import ast

import house


def listing(places):
    return "\n".join(map(str, places))


def test_names_say_what_a_value_is():
    places, total = house.vague_names(house.sources())
    assert 1000 * len(places) <= total, f"rename them:\n{listing(places)}"


def test_public_functions_are_annotated():
    annotated, missing = house.public_functions(house.sources())
    share = len(annotated) / (len(annotated) + len(missing))
    assert share >= 0.9, f"annotate them:\n{listing(missing)}"


def test_no_verb_imports_a_verb():
    places = house.verbs_that_import_verbs()
    assert not places, f"move what both need below tools/:\n{listing(places)}"


def test_tasks_and_kinds_are_asked_for_what_they_know():
    """A branch by name outside their rooms is a place that a new task has to find."""
    places = house.questions_by_name(sorted(house.PACKAGE.rglob("*.py")))
    assert len(places) <= 3, f"ask the task, kind or evaluator:\n{listing(places)}"


def test_the_counts_see_what_they_count(tmp_path, monkeypatch):
    source = (
        "def a(told: int) -> int:\n    kept = own.given = 1\n"
        "    for held, _seen in b: pass\n"
        "    if config.task == 'x' or 'taps' in config.model: pass\n"
        "    x = 'segmentation' == task\n"
        "def b(x, *y): pass\n"
        "def _c(x): pass\n"
        "from g2sd_jax.tools import chain\n"
    )
    names = [name for name, _ in house.bindings(ast.parse(source))]
    assert sorted(names) == sorted(
        ["told", "kept", "given", "held", "_seen", "x", "x", "y", "x"]
    )
    folder = tmp_path / "g2sd_jax" / "tools"
    folder.mkdir(parents=True)
    file = folder / "probe.py"
    file.write_text(source)
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.setattr(house, "PACKAGE", tmp_path / "g2sd_jax")
    vague, total = house.vague_names([file])
    assert {place.text for place in vague} == {"told", "held", "_seen", "kept", "given"}
    assert total == 9
    annotated, missing = house.public_functions([file])
    assert [place.text for place in annotated] == ["a"]
    assert [place.text for place in missing] == ["b"]
    assert len(house.verbs_that_import_verbs()) == 1
    assert [place.line for place in house.questions_by_name([file])] == [4]
