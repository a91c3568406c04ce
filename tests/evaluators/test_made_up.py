# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""An evaluator that the package has never heard of: pixels, less is better, two tables.

Whatever shows scores asks the evaluator, so none of it has to be changed for a new one.
"""

import json

import numpy as np
import pytest

import finished_runs
import runs
from g2sd_jax import checkpoint, cli, core, stages
from g2sd_jax.evaluators import fold, splits, tables
from g2sd_jax.pages import chain_report, class_tables, fingerprint, results_table
from g2sd_jax.tools import doctor

JOINTS = 25  # More than are printed.
SCORE = core.Score(
    "error",
    "mean error",
    unit="px",
    higher_is_better=False,
    chance=8.0,
    count="joints",
    counted="joints of held-out pictures",
)


def joint_error(config) -> core.Evaluator:
    """How far joints are from their place: invented, but the same every time."""

    def update(state, outputs, examples):
        new = np.array([example["label"] for example in examples], np.float64)
        return dict(error=np.concatenate([state["error"], new]))

    def made(state, names):
        joint = lambda i: dict(name=f"joint{i}", error=float(i), side="left")
        columns = [core.Column("name", "joint"), core.Column("error", "error", "px")]
        hidden = core.Column("side", "side", printed=False)
        size = lambda name, error: dict(name=name, error=error)
        sizes = [size("small", 1.25), size("large", None)]
        return [
            core.Table(
                "joints",
                "joint by joint",
                [joint(i) for i in range(JOINTS)],
                [*columns, hidden],
                worst="error",
                worst_is="highest",
            ),
            core.Table("sizes", "size by size", sizes, columns),
        ]

    return core.Evaluator(
        batches=splits.eval_batches(config),
        predict=lambda variables, frozen, batch: dict(label=batch["label"]),
        start=lambda: dict(error=np.zeros(0)),
        update=update,
        merge=lambda states: dict(error=np.concatenate([s["error"] for s in states])),
        finish=lambda state: dict(
            error=float(np.mean(state["error"])) if len(state["error"]) else np.nan,
            joints=len(state["error"]),
        ),
        scores=(SCORE,),
        tables=made,
        rate_unit="poses",
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The workdir of a run that such an evaluator scores."""
    build = stages.build

    def with_joints(config):
        return build(config)._replace(evaluators={"eval": joint_error(config)})

    monkeypatch.setattr(stages, "build", with_joints)
    path, *_ = finished_runs.workdir(tmp_path, "finetune")
    done = {"step": 200, "loss": 0.1, "eval/error": 2.5, "eval/joints": 40}
    rows = [{"step": step, "loss/xent": 0.1} for step in range(100, 201)]
    rows += [{"step": 200, "eval/error": 7.5, "eval/joints": 40}]
    (tmp_path / "run" / "DONE").write_text(json.dumps(done))
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def test_evaluate_prints_its_unit_and_both_tables(run, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert cli.main(["evaluate", f"--workdir={run}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())["evaluators"]["eval"]
    assert figures["metrics"].keys() == {"error", "joints"}
    assert figures["poses_per_s"] > 0 and "images_per_s" not in figures
    assert len(figures["joints"]) == JOINTS and len(figures["sizes"]) == 2
    assert "  joint by joint:\n  joint    error px\n  joint24     24.00\n" in printed
    assert "  (the 20 highest of 25 joints; --out has all)\n" in printed
    assert "joint4 " not in printed
    assert "  size by size:\n  joint  error px\n  small      1.25\n" in printed
    assert "  large         –\n" in printed and "left" not in printed


def test_a_page_shows_its_tables_and_its_unit(run):
    out = f"{run}/{class_tables.EVALUATION}"
    assert cli.main(["evaluate", f"--workdir={run}", f"--out={out}"]) == 0
    assert cli.main(["report", run]) == 0
    with open(f"{run}/report.html") as file:
        html = file.read()
    for text in ("run, eval: joint by joint", "run, eval: size by size", "left"):
        assert text in html
    assert ">error (px)</th>" in html
    assert "<td>eval/error</td>" in html


def test_the_results_table_knows_that_less_is_better(run):
    score = results_table.score_of(run)
    assert score == SCORE
    row = lambda method, *errors: results_table.Row(method, 9, 1.0, "no", "no", errors)
    better, worse = row("A", 2.0, 2.5), row("B", 3.0, 3.25)
    gain = results_table.effect("Both", better, worse, score)
    assert "-0.88 ± 0.18 px (-1.00, -0.75); it helped." in gain
    assert results_table.effect("Both", worse, better, score).endswith("it hurt.")
    header, _ = results_table.table([better, worse], score)
    assert header[1] == "mean error"
    assert chain_report.score_words(score) == "mean error in px (less is better)"
    assert chain_report.example_words(score, run) == "40 joints of held-out pictures"


def test_the_checkpoint_with_the_least_error_stays(run, tmp_path):
    config = runs.small("finetune")
    config.checkpoint.best = "eval/error"
    stage = stages.build(config)
    choose = lambda: checkpoint.retention_options(
        config, fold.metric_names(stage), fold.scores(stage)
    )
    assert choose()["best_is"] == "min"
    manager = checkpoint.Manager(str(tmp_path / "saved"), **choose() | dict(keep=1))
    for step, error in enumerate((4.0, 2.0, 3.0), start=1):
        state = core.TrainState(np.int32(step), {"a": np.zeros(2)}, {}, {})
        manager.save(step, state, {}, {"eval/error": error})
    manager.close()
    assert checkpoint.Manager(str(tmp_path / "saved")).steps() == [3, 2]
    config.checkpoint.best_is = "max"  # What the recipe says goes.
    assert choose()["best_is"] == "max"
    config.checkpoint.update(best="eval/joints", best_is="")
    with pytest.raises(ValueError, match="best_is to max or min"):
        choose()


def test_doctor_and_fingerprints_know_its_score(run):
    stage = stages.build(runs.small("finetune"))
    assert fingerprint.recorded_metrics(stage) == {"loss", "eval/error"}
    rows = [{"step": step, "loss/xent": 0.1} for step in range(100, 201)]
    for error, symptoms in ((7.5, 1), (7.0, 0)):
        ended = [*rows, {"step": 200, "eval/error": error}]
        patient = doctor.Patient(run, runs.small("finetune"), ended)
        sentences = doctor.labels(patient)
        assert len(sentences) == symptoms
        words = "mean error of the held-out ones is 7.5 px, little better"
        assert all(words in sentence for sentence in sentences)


def test_an_older_file_of_figures_is_shown_as_it_is(tmp_path):
    classes = [
        dict(name="sky", count=3, iou=50.0, mistaken_for=["road", 2]),
        dict(name="road", count=0, iou=None, mistaken_for=None),
    ]
    eval_figures = dict(metrics={"mIoU": 25.0}, confusion=[[1, 2], [0, 0]])
    figures = dict(evaluators={"eval": dict(eval_figures, classes=classes)})
    (tmp_path / class_tables.EVALUATION).write_text(json.dumps(figures))
    [section] = class_tables.class_tables("a", str(tmp_path))
    assert section.title == "a, eval: classes"
    [table] = section.blocks
    assert table["header"] == ["name", "count", "iou", "mistaken_for"]
    assert table["rows"] == [["sky", "3", "50.00", "road 2"], ["road", "0", "–", "–"]]


def test_an_evaluator_may_have_no_table_and_no_score():
    bare = joint_error(runs.small("finetune"))._replace(
        tables=core.no_tables, scores=()
    )
    assert bare.score is None
    assert tables.to_json(bare.tables(bare.start(), ())) == {}
    assert tables.lines(tables.from_json(dict(metrics={"error": 1.0}))) == []
