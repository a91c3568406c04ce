# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A third task from outside of the package, `tests/stripes`, through every verb.

Its answers are two arrays, its score is in degrees and less is better, its batch has a
key of its own. What makes it known is a row in each table; nothing in the package is
changed for it, nor names it.
"""

import base64
import io
import json
import os
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import stripes
from g2sd_jax import cli, finished, kinds, loop, metrics, recipes, summary
from g2sd_jax.data.memory import fake
from g2sd_jax.evaluators import fold
from g2sd_jax.pages import class_tables, results_table
from g2sd_jax.tools import inspect
from g2sd_jax.weights import loading
from stripes import data, task

ROOTS = ("g2sd_jax", "configs")


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        stripes.register(patch)
        yield


@pytest.fixture(scope="module")
def chain(registered, tmp_path_factory):
    """The folder of a chain: a short run, and a longer one that goes on from it."""
    folder = str(tmp_path_factory.mktemp("chain"))
    assert cli.main(["chain", f"--config={stripes.CHAIN}", f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(chain):
    return f"{chain}/seed0/long"


@pytest.fixture(scope="module")
def originals(run):
    config = finished.config_of(run)
    held_out = fake.load(config, config.data.eval_split, task.READS)
    return [held_out.original(i) for i in range(held_out.count)]


@pytest.fixture(scope="module")
def pictures(originals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{i}.png") for i in range(len(originals))]
    for path, original in zip(paths, originals, strict=True):
        Image.fromarray(original["image"]).save(path)
    return paths


def done(path):
    with open(f"{path}/DONE") as file:
        return json.load(file)


def evaluations(path):
    """{step: direction error} of a run."""
    rows = metrics.read_lines(f"{path}/metrics.jsonl")
    return {row["step"]: row["eval/error"] for row in rows if "eval/error" in row}


def test_the_package_does_not_name_it():
    root = os.path.dirname(os.path.dirname(cli.__file__))
    for name in ROOTS:
        for folder, _, names in os.walk(os.path.join(root, name)):
            for file in names:
                if file.endswith((".py", ".md", ".html", ".json", ".txt")):
                    with open(os.path.join(folder, file), encoding="utf-8") as opened:
                        assert "stripe" not in opened.read().lower(), (folder, file)


def test_it_trains_in_parts_and_learns_both_answers(run):
    rows = metrics.read_lines(f"{run}/metrics.jsonl")
    losses = [row for row in rows if "loss" in row]
    assert len(losses) == 48
    for name in ("loss/angle", "loss/frequency"):
        assert losses[-1][name] < 0.8 * losses[0][name], name
    total = losses[-1]["loss/angle"] + losses[-1]["loss/frequency"]
    assert losses[-1]["loss"] == pytest.approx(total)


def test_it_says_why_it_cannot_be_divided(run, tmp_path):
    config = finished.config_of(run, {"loss.divisor": "cycles", "init_from": ""})
    with pytest.raises(ValueError, match=rf"accumulate=2: {task.BECAUSE}; use "):
        loop.run(config, str(tmp_path))
    assert not os.listdir(tmp_path)


def test_a_source_without_its_key_is_refused(tmp_path, capsys):
    argv = ["train", f"--config={stripes.RECIPE}:smoke", f"--workdir={tmp_path}/new"]
    assert cli.main([*argv, "--config.data.source=digits"]) == 2
    message = capsys.readouterr().err
    assert "config.task=stripes reads stripe; use config.data.source=fake." in message


def test_a_recipe_without_its_keys_is_told_which_has_them(capsys, tmp_path):
    recipe = tmp_path / "own.py"
    recipe.write_text(
        "import runpy\n"
        f"make = runpy.run_path({stripes.RECIPE!r})['get_config']\n"
        "def get_config(arguments=''):\n"
        "    config = make(arguments)\n"
        "    del config.loss\n"
        "    return config\n"
    )
    assert cli.main(["train", f"--config={recipe}:smoke", f"--workdir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "this recipe has no config.loss, which config.task=stripes " in message
    assert f"(the recipe {stripes.RECIPE} has them) reads" in message


def test_a_killed_run_ends_in_the_same_bits(chain, capsys):
    short = f"{chain}/seed0/short"
    before, facts = done(short), inspect.run(short)
    os.remove(f"{short}/DONE")
    shutil.rmtree(f"{short}/checkpoints/4")
    assert cli.main(["chain", f"--config={stripes.CHAIN}", f"--workdir={chain}"]) == 0
    printed = capsys.readouterr().out
    assert "restored step 2" in printed and "seed0/long: done before" in printed
    assert done(short) == before and inspect.run(short) == facts


def test_the_checkpoint_with_the_least_error_stays(run):
    scores = evaluations(run)
    assert min(scores.values()) < max(scores.values())
    best = min(scores, key=lambda step: (scores[step], step))
    steps = {int(name) for name in os.listdir(f"{run}/checkpoints")}
    assert steps == {best, max(scores)}


def test_evaluate_prints_its_score_and_its_table(run, originals, tmp_path, capsys):
    out = f"{run}/{class_tables.EVALUATION}"
    assert cli.main(["evaluate", f"--workdir={run}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    with open(out) as file:
        figures = json.load(file)["evaluators"]["eval"]
    error = figures["metrics"]["error"]
    assert error == done(run)["eval/error"]
    assert f"eval: error {error:.4g}, frequency_error " in printed
    assert "  direction   count  off by deg  off by cycles\n" in printed
    degrees = np.array([original["stripe"][0] for original in originals])
    for row in figures["directions"]:
        assert row["count"] == np.isclose(degrees, float(row["name"].split()[0])).sum()
        assert f"  {row['name']:9}" in printed
    weighted = sum(row["count"] * row["error"] for row in figures["directions"])
    assert weighted / len(originals) == pytest.approx(error)


def test_predict_tells_and_writes_both_arrays(
    run, originals, pictures, tmp_path, capsys
):
    out = tmp_path / "answers.json"
    assert cli.main(["predict", *pictures, f"--workdir={run}", f"--out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(out.read_text())
    for line, path, row in zip(lines[-len(rows) :], pictures, rows, strict=True):
        words = f"{row['degrees']:g} deg, {row['cycles']:.2f} cycles"
        assert line == f"{path}: {words}"
        assert np.argmax(row["shares"]) == row["degrees"] / 45
        assert sum(row["shares"]) == pytest.approx(1)
    # They are the answers that evaluation judges.
    truth = np.array([original["stripe"] for original in originals])
    degrees, cycles = (
        np.array([row[k] for row in rows]) for k in ("degrees", "cycles")
    )
    off = data.angle_between(degrees, truth[:, 0])
    assert off.mean() == pytest.approx(done(run)["eval/error"])
    off = np.abs(cycles - truth[:, 1]).mean()
    assert off == pytest.approx(done(run)["eval/frequency_error"], rel=1e-4)


def test_inspect_knows_the_run_and_its_file(run, tmp_path, capsys):
    export = ["export", f"--workdir={run}", "--format=safetensors"]
    assert cli.main([*export, f"--out={tmp_path}"]) == 0
    file = str(tmp_path / "model.safetensors")
    bare = str(tmp_path / "bare.safetensors")  # Without a description, by its names.
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), bare)
    network = "stripes: an encoder of 2 blocks, width 16, no decoder, a head for "
    network += "stripes of 4 classes, patches of 4 pixels, 3 channels"
    for path in (run, file, bare):
        capsys.readouterr()
        assert cli.main(["inspect", path]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert network in lines
        assert "head: 4 directions, and a frequency in cycles" in lines
        assert lines[-1] == f"serves: config.init_from of {stripes.RECIPE}"
    # The file describes itself: it is evaluated as the run was.
    model = finished.choose("", file, "", {})
    assert (model.config.task, model.config.model.width) == ("stripes", 16)
    run_variables = finished.from_run(run).variables
    jax.tree.map(np.testing.assert_array_equal, model.variables, run_variables)


def test_export_writes_both_answers_and_refuses_a_format(run, tmp_path, capsys):
    export = ["export", f"--workdir={run}", f"--out={tmp_path}"]
    assert cli.main([*export, "--format=stablehlo"]) == 0
    program = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    model = finished.from_run(run)
    batch, _ = next(iter(model.stage.evaluators["eval"].batches()))
    answers = jax.jit(program.call)(batch["image"][:3])
    expected = jax.jit(model.stage.evaluators["eval"].predict)(
        model.variables, {}, dict(image=batch["image"][:3])
    )
    assert answers.keys() == {"logits", "frequency"}
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, expected[name], rtol=1e-4, atol=1e-5)
    written = json.loads((tmp_path / "preprocessing.json").read_text())
    assert written["directions"] == 4 and written["program"]["output"]["logits"]
    capsys.readouterr()
    for name, words in (
        ("timm", "--format=timm takes no stripes: timm counts no stripes; use "),
        ("onnx", "--format='onnx' is not known; known: safetensors, stablehlo"),
    ):
        assert cli.main([*export, f"--format={name}"]) == 2
        assert words in capsys.readouterr().err


def test_the_report_shows_score_unit_table_and_first_batch(run):
    out = f"{run}/{class_tables.EVALUATION}"
    assert cli.main(["evaluate", f"--workdir={run}", f"--out={out}"]) == 0
    assert cli.main(["report", run]) == 0
    with open(f"{run}/report.html") as file:
        html = file.read()
    for text in (
        f"{done(run)['eval/error']:.4g}</td>",
        "long, eval: direction by direction",
        ">off by (deg)</th>",
        'alt="eval/error"',
        'alt="eval/frequency_error"',
        "What long learned from first",
    ):
        assert text in html, text
    with open(f"{run}/{summary.PICTURE}", "rb") as file:
        png = file.read()
    assert base64.b64encode(png).decode() in html
    with Image.open(io.BytesIO(png)) as sheet:  # Captions, and below them a legend.
        drawn = np.asarray(sheet.convert("RGB")).astype(int)
    tile = 96 + 2 * summary.LINE + 4
    assert drawn.shape[1] == 4 * 100 and drawn.shape[0] > tile
    captions, legend = drawn[100:tile], drawn[tile:]
    assert captions.min() < 64 and np.ptp(legend, axis=-1).max() > 50


def test_a_chain_ranks_it_by_less(chain, run):
    with open(f"{chain}/report.md") as file:
        text = file.read()
    assert "| method | direction error | share | generic | specific |" in text
    assert "Scores are direction error in deg (less is better) of 40 held-out" in (
        " ".join(text.split())
    )
    assert "reconstructions.png" not in text
    score = results_table.score_of(run)
    short, long = (
        results_table.Row(name, 1, 1.0, "no", "no", (value, value))
        for name in ("short", "long")
        for value in results_table.scores_of([f"{chain}/seed0/{name}"])
    )
    assert long.mean < short.mean
    assert results_table.effect("It", long, short, score).endswith("it helped.")
    assert f"{long.mean:.2f}" in text and f"{short.mean:.2f}" in text


def test_a_recipe_that_starts_from_nothing_has_nothing_behind_it(run, tmp_path):
    with open(f"{run}/config.json") as file:
        config = json.load(file)
    del config["init_from"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert results_table.stages_behind(str(tmp_path)) == ("no", "no")


def test_the_doctor_warns_of_a_run_that_learned_nothing(run, tmp_path, capsys):
    shutil.copy(f"{run}/config.json", tmp_path / "config.json")
    learned = {"loss/angle": 0.1, "loss/frequency": 0.01}
    for losses, error, words in (
        (learned, 5.0, "nothing looks wrong after 120 steps"),
        (
            learned | {"loss/frequency": 0.37},
            5.0,
            "answering with their mean costs 0.3",
        ),
        (learned | {"loss/angle": 1.38}, 5.0, "guessing among 4 classes costs"),
        (learned, 44.0, "direction error of the held-out ones is 44.0 deg, little bet"),
    ):
        rows = [{"step": step, "loss": 0.1, **losses} for step in range(1, 121)]
        rows.append({"step": 120, "eval/error": error})
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "metrics.jsonl").write_text(text)
        status = cli.main(["doctor", str(tmp_path)])
        printed = capsys.readouterr().out
        assert words in printed and status == (words[:7] != "nothing"), printed


def test_an_older_run_gets_the_keys_of_its_own_recipe(run, tmp_path, capsys):
    with open(f"{run}/config.json") as file:
        config = json.load(file)
    del config["loss"]["divisor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert finished.config_of(str(tmp_path)).loss.divisor == "examples"
    assert f"the recipe {stripes.RECIPE} has them" in capsys.readouterr().out


def test_weights_are_of_its_kind_alone(run):
    weights = loading.read(run, "--workdir")
    bare = loading.Weights("a file", weights.arrays, {})
    assert kinds.name_of(bare) == kinds.name_of(weights) == "stripes"
    names = [n for n in kinds.KINDS if kinds.by_name(n).recognises(weights.arrays)]
    assert names == ["stripes"]
    assert fold.scores(finished.from_run(run).stage).keys() == {
        "eval/error",
        "eval/frequency_error",
    }
    assert recipes.load(stripes.RECIPE).task == "stripes"
