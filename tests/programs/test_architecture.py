# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md is true: its rooms, its order of imports, its examples."""

import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import documents
import runs
import test_imports
from g2sd_jax import finished, recipes, stages

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = "docs/architecture.md"
TEXT = documents.read(PAGE)
BLOCKS = [block.text for block in documents.blocks(PAGE, "python")]


def indented(after: str) -> list[str]:
    """The lines of the first indented block behind a phrase."""
    lines = TEXT[TEXT.index(after) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    last = next(i for i in range(first, len(lines)) if not lines[i].strip())
    return lines[first:last]


def test_its_table_of_imports_is_the_one_that_is_checked():
    layers = " ".join(indented("Imports point down")).split(">")
    written = [set(layer.split()) for layer in layers]
    assert written[::-1] == [set(names) for names in test_imports.LAYERS]


def test_its_rooms_are_those_there_are():
    lines = [line.removeprefix("    ") for line in indented("## The rooms")]
    inside = [line[11:] for line in lines if not line.startswith(("configs", "tests"))]
    named = {word for line in inside for word in re.split(r" {2,}", line)[0].split()}
    package = ROOT / "g2sd_jax"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "configs"}
    assert named == files | {f"{name}/" for name in folders}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Writes each block that begins with a path there, in a copy of the recipes."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for block in BLOCKS:
        if block.startswith("# "):
            path = tmp_path / block.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")
    folder = str(tmp_path / "g2sd_jax/stages")
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, folder])
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "configs")


@pytest.mark.usefixtures("example")
def test_its_stage_has_the_loss_it_says():
    overrides = dict(model=runs.SMALL | runs.DECODER, batch=8)
    overrides |= {"data.train_examples": 64, "monitor.neighbours": 0}
    config, squares = (
        recipes.load(f"{name}:smoke", overrides) for name in ("pretrain_l1", "pretrain")
    )
    stage = stages.build(config)
    variables = jax.jit(stage.init)(jax.random.key(0))
    batch, _ = next(iter(stage.evaluators["val"].batches()))
    batch = stage.augment(batch, {})
    draws = stage.draw(jax.random.key(0), batch)

    def loss_of(stage):
        loss = jax.jit(stage.loss)
        return float(loss(variables["params"], {}, {}, batch, draws, 0)[0])

    mean = loss_of(stage)
    assert 0.1 < mean < 0.99 * loss_of(stages.build(squares)) ** 0.5  # By Jensen.
    # Its monitor is a mean of the same loss, one example at a time.
    monitored = jax.jit(stage.evaluators["val"].predict)(variables, {}, batch)
    np.testing.assert_allclose(np.mean(monitored["loss"]), mean, rtol=1e-5)
    # The verbs complete an older run by the recipe of its stage.
    recipe = finished.recipe_of(config)
    assert recipes.load(recipe).stage == config.stage == "pretrain_l1"


def test_its_task_is_that_of_the_tests():
    code = "".join(path.read_text() for path in (ROOT / "tests/stripes").glob("*.py"))
    quoted = [block for block in BLOCKS if not block.startswith("# ")]
    assert len(quoted) == 1 and all(block in code for block in quoted)
    files = {line.split()[0] for line in indented("`tests/stripes/` is one")}
    written = {path.name for path in (ROOT / "tests/stripes").glob("*.py")}
    assert written - files == {"__init__.py", "chain.py"}
