# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The commands and snippets of README.md and docs/tutorial.md do what they say."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import documents
import files
import finished_runs
import foreign_files

TUTORIAL = "docs/tutorial.md"
PAGES = ("README.md", TUTORIAL)
PROGRAM = documents.ROOT / "tests/page_program.py"
DIGITS = tuple("0123456789")


def commands(page):
    blocks = documents.blocks(page, "bash")
    return [words for block in blocks for words in documents.commands(block.text)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_start(page, monkeypatch):
    recipe_of = {}
    blocks, inline = commands(page), documents.inline(page)
    assert len(blocks) > 5 and inline
    for words in blocks + inline:
        # The one number that a page leaves open.
        words = [word.replace("=PRICE", "=1") for word in words]
        try:
            documents.check(words, monkeypatch, recipe_of)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"{page}: {' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("g2sd trian --config=pretrain --workdir=w", "did you mean train"),
        ("g2sd predict a.jpg --workdir=w --fromat=timm", "--fromat=timm"),
        ("g2sd train --config=pretrain", "required: --workdir"),
        ("g2sd train --config=finetune:modle=s16 --workdir=w", "did you mean model"),
        ("g2sd train --config=finetune --workdir=w --config.batch=x", "an integer"),
        ("g2sd evaluate --workdir=w --config.data.paht=x", "mean config.data.path"),
        ("g2sd evaluate --workdir=v --config.data.path=x", "no recipe that is named"),
        ("bash launch/quickstrat.sh", "is not in the repository"),
        ("pip install -e '.[torch,trch]'", "no extra {'trch'}"),
        ("wget pictures.tar", "nothing here checks wget"),
    ],
)
def test_a_wrong_command_is_seen(command, reason, monkeypatch):
    [words] = documents.commands(command)
    with pytest.raises((ValueError, AssertionError), match=re.escape(reason)):
        documents.check(words, monkeypatch, {"w": "finetune"})


def snippets(page):
    """The blocks of Python that need nothing but this package's requirements."""
    blocks = documents.blocks(page, "python")
    return [["python", b.text] for b in blocks if "import timm" not in b.text]


def run(folder, mode, steps):
    """Runs steps of pages in a folder; what a reader has is there."""
    picture = files.encode(files.pixels((20, 18)))
    files.write(folder, {"rose.jpg": picture})
    text = json.dumps(steps).replace("path=DIR", "path=pictures")
    (folder / "steps.json").write_text(text)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "steps.json", mode],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(documents.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_snippets_run_on_a_student_that_is_there(tmp_path):
    """Nothing is trained, but each recipe is read with its settings."""
    student = tmp_path / "runs/mine/seed0/g2sd"
    student.parent.mkdir(parents=True)
    made, *_ = finished_runs.workdir(
        tmp_path, "finetune", data=dict(classes=10), class_names=DIGITS
    )
    shutil.move(made, student)
    steps = snippets(TUTORIAL) + snippets("README.md")
    assert len(steps) == 4
    assert "(1, 16) (1, 17, 16)" in run(tmp_path, "loaded", steps)
    assert len(list(tmp_path.glob("pictures/*/*.png"))) == 1200
    assert len(list(tmp_path.glob("unlabelled/*.png"))) == 597


@pytest.mark.slow
def test_the_tutorial_runs_from_the_pictures_to_the_export(tmp_path):
    foreign_files.dinov2(tmp_path / "dinov2-small")
    steps = []
    for block in documents.blocks(TUTORIAL, "bash", "python"):
        if block.language == "bash":
            steps += [["g2sd", w[1:]] for w in documents.commands(block.text)]
        elif ["python", block.text] in snippets(TUTORIAL):
            steps.append(["python", block.text])
    # README's chain is the tutorial's, which is done by then.
    said = run(tmp_path, "short", steps + snippets("README.md"))
    assert "| G2SD w/o S.D |" in said and said.count("seed0/g2sd: done before") == 1
    assert "34 found, 0 fresh" in said  # All of the teacher's.
    assert "the task's own loss (xent) is left out" in said
    for file in ("report.html", "seed0/g2sd/export/timm/model.safetensors"):
        assert (tmp_path / "runs/mine" / file).is_file()


def test_the_notebook_is_the_page():
    """If this fails: python launch/make_notebook.py docs/tutorial.md"""
    text = documents.read("docs/tutorial.ipynb")
    assert text == documents.make_notebook.encode(documents.read(TUTORIAL))


def test_a_page_becomes_cells():
    page = "# A\n\n```\na/b\n```\n\nb\n\n```bash\ng2sd help\n```\n"
    page += "```python\n1\n2\n```\nc\n"
    notebook = documents.make_notebook.notebook(page)
    cells = [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]]
    assert cells == [
        ("markdown", "# A\n\n```\na/b\n```\n\nb"),
        ("code", "%%bash\ng2sd help"),
        ("code", "1\n2"),
        ("markdown", "c"),
    ]
    assert len({cell["id"] for cell in notebook["cells"]}) == len(cells)
