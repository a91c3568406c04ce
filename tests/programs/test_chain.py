# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

import runs
from g2sd_jax import cli, core, errors, recipes, stages
from g2sd_jax import finished as trained
from g2sd_jax import workdir as workdirs
from g2sd_jax.losses import masked
from g2sd_jax.measure import speed
from g2sd_jax.pages import chain_report, plots, reconstructions, results_table
from g2sd_jax.tools import chain

SMOKE = "chains/digits:smoke,steps=2"


def tiny(*steps, **changes):
    """A chain of `steps` whose report shows the last one."""
    last = steps[-1][0]
    config = dict(title="", note="", seeds=(0,), rows=(("all", last),), steps=steps)
    config |= dict(reconstructions=last, cache_dir=None, progress=False)
    return ConfigDict(config | changes)


def test_plan_fills_placeholders_per_seed(tmp_path):
    steps = (
        ("a", "pretrain:smoke", {}),
        ("b", "finetune:smoke", {"init_from": "{a}", "optim": {"lr": 1e-3}}),
    )
    planned = chain.plan(tiny(*steps, seeds=(3, 5)), str(tmp_path))
    assert [step.name for step in planned] == [
        "seed3/a",
        "seed3/b",
        "seed5/a",
        "seed5/b",
    ]
    assert [step.config.seed for step in planned] == [3, 3, 5, 5]
    last = planned[-1]
    assert last.config.init_from == str(tmp_path / "seed5" / "a")
    assert last.workdir == str(tmp_path / "seed5" / "b")
    assert last.config.optim.lr == 1e-3
    assert not last.config.progress


def test_a_step_that_fixes_its_seed_is_one_run_of_all_seeds(tmp_path):
    steps = (
        ("teacher", "pretrain:smoke", {"seed": 5}),
        ("student", "finetune:smoke", {"init_from": "{teacher}"}),
    )
    config = tiny(*steps, seeds=(3, 5))
    planned = chain.plan(config, str(tmp_path))
    assert [step.name for step in planned] == [
        "seed5/teacher",
        "seed3/student",
        "seed5/student",
    ]
    teacher = str(tmp_path / "seed5" / "teacher")
    assert [step.config.seed for step in planned] == [5, 3, 5]
    assert {step.config.init_from for step in planned[1:]} == {teacher}
    students = trained.chain_runs(config, str(tmp_path), "student")
    assert students == [step.workdir for step in planned[1:]]
    assert trained.chain_runs(config, str(tmp_path), "teacher") == [teacher]


def test_the_seconds_of_every_leg_count(tmp_path, monkeypatch):
    ends = iter([errors.Preempted("told to leave"), None])

    def leg(config, workdir):
        time.sleep(0.2)
        end = next(ends)
        if end:
            raise end

    monkeypatch.setattr(chain.loop, "run", leg)
    monkeypatch.setattr(chain.chain_report, "write", lambda config, workdir: "")
    config = tiny(("a", "pretrain:smoke", {}))
    with pytest.raises(errors.Preempted):
        chain.run(config, str(tmp_path))
    chain.run(config, str(tmp_path))
    told = json.loads((tmp_path / chain_report.SECONDS).read_text())
    assert 0.4 <= told["seed0/a"] < 5


def test_seeds_share_one_cache(tmp_path, monkeypatch):
    config = tiny(("a", "pretrain:smoke", {}), seeds=(0, 1))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folders = {s.config.cache_dir for s in chain.plan(config, str(tmp_path))}
    assert folders == {str(tmp_path / "cache")}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    folders = {s.config.cache_dir for s in chain.plan(config, str(tmp_path))}
    assert folders == {None}
    config.cache_dir = "here"
    folders = {s.config.cache_dir for s in chain.plan(config, str(tmp_path))}
    assert folders == {"here"}


A = ("a", "pretrain:smoke", {})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            tiny(A, ("b", "finetune:smoke", {"init_from": "{teacher}"})),
            "step 'b' of the chain: placeholder='teacher' is not known; known: a",
        ),
        (
            tiny(("b", "finetune:smoke", {"init_from": "{b}"})),
            "placeholder='b' is not known",
        ),
        (
            tiny(A, ("b", "finetun:smoke", {})),
            "step 'b' of the chain: recipe='finetun' is not known; did you mean fine",
        ),
        (
            tiny(A, ("b", "finetune:smoke", {"optim.lrr": 1.0})),
            "step 'b' of the chain: config.optim.lrr is not a key",
        ),
        (tiny(A, ("b", "chains/digits", {})), "step 'b' of the chain: config.seed"),
        (tiny(A, A), "config.steps has two steps named 'a'"),
        (tiny(A, seeds=()), "config.seeds and config.steps must not be empty"),
        (tiny(A, rows=(("A", "c"),)), "the step of 'A'='c' is not known"),
        (tiny(A, reconstructions="c"), "config.reconstructions='c' is not known"),
        (ConfigDict(dict(steps=())), "it has no config.seeds, config.rows"),
    ],
)
def test_a_wrong_chain_is_refused_before_anything_runs(config, told, tmp_path):
    with pytest.raises(ValueError) as error:
        chain.run(config, str(tmp_path / "new"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("verb", "recipe", "told"),
    [
        ("train", "chains/digits", "error: this recipe is a chain of stages; run it "),
        (
            "chain",
            "pretrain",
            "error: this recipe is one stage, pretrain, and no chain",
        ),
    ],
)
def test_chains_and_stages_are_told_apart(verb, recipe, told, tmp_path, capsys):
    assert cli.main([verb, f"--config={recipe}", f"--workdir={tmp_path / 'new'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(told)
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_digits_have_three_fixed_seeds():
    assert recipes.load("chains/digits").seeds == (0, 1, 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("chain")
    argv = [f"--config={SMOKE}", f"--workdir={workdir}", "--config.progress=False"]
    assert cli.main(["chain", *argv]) == 0
    return workdir, argv


def times(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.glob("seed*/*/DONE")}


@pytest.mark.slow
def test_report_has_every_row_and_picture(finished):
    workdir, _ = finished
    text = (workdir / "report.md").read_text()
    cells = [
        line.strip("| ").split(" | ") for line in text.split("\n\n")[1].split("\n")
    ]
    assert [row[0] for row in cells[2:]] == [
        "teacher",
        "MAE",
        "MAE ms",
        "G2SD w/o S.D",
        "G2SD",
    ]
    assert [row[3:5] for row in cells[2:]] == [
        ["–", "–"],
        ["no", "no"],
        ["no", "yes"],
        ["yes", "no"],
        ["yes", "yes"],
    ]
    assert cells[0][:2] == ["method", "top-1"]
    assert cells[0][5:] == ["params (thousands)", "throughput", "each seed", "top-5"]
    assert cells[2][6] == "1.00x"
    assert cells[2][2] == "100.0 %"
    done = json.loads((workdir / "seed0/g2sd/DONE").read_text())
    assert cells[-1][1] == f"{done['eval/top1']:.2f}"
    assert cells[-1][-1] == f"{done['eval/top5']:.2f}"
    assert "of 599 held-out examples" in text
    assert "not expected\nto add" in text or "not expected to add" in text
    assert text.count("seed cannot tell") == 4
    html = (workdir / "report.html").read_text()
    assert f'<td class="number">{done["eval/top1"]:.2f}</td>' in html
    steps = recipes.load(SMOKE).steps
    assert html.count('alt="loss of every step of') == len(steps)
    assert html.count('src="data:image/') == len(steps) + 1
    assert "http" not in html.replace("http://www.w3.org", "")
    for picture in ("losses.png", "reconstructions.png"):
        assert f"]({picture})" in text
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_only_what_is_not_done_runs_again(finished, monkeypatch, capsys):
    workdir, argv = finished
    monkeypatch.setattr(chain_report, "write", lambda config, workdir: "")
    before = times(workdir)
    assert len(before) == 8
    assert cli.main(["chain", *argv]) == 0
    assert times(workdir) == before
    assert capsys.readouterr().out.count("done before") == 8

    gone = workdir / "seed0/g2sd_generic/DONE"
    was = json.loads(gone.read_text())
    gone.unlink()
    assert cli.main(["chain", *argv]) == 0
    changed = {path for path, time in times(workdir).items() if time != before[path]}
    assert changed == {gone}
    assert json.loads(gone.read_text())["eval/top1"] == was["eval/top1"]


@pytest.mark.slow
def test_a_workdir_of_another_chain_is_refused(finished, capsys):
    workdir, argv = finished
    before = times(workdir)
    other = ["--config=chains/digits:smoke,steps=3", *argv[1:]]
    assert cli.main(["chain", *other]) == 2
    err = capsys.readouterr().err
    assert "config.steps.g2sd.total_steps was 2, now 3" in err
    assert times(workdir) == before


TOP1 = core.Score("top1", "top-1")


def row(method, *top1, params=15_000, generic="no", specific="no"):
    return results_table.Row(method, params, 2.0, generic, specific, top1)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            (98, 97, 98),
            (96, 96, 95),
            "+2.00 ± 1.00 points (+2.00, +1.00, +3.00); it hel",
        ),
        (
            (95, 96, 95),
            (97, 97, 98),
            "-2.00 ± 1.00 points (-2.00, -1.00, -3.00); it hur",
        ),
        ((97, 96, 98), (96, 97, 97), "it made no difference that these seeds can tell"),
        ((96.1, 96.1, 99.1), (96, 96, 96), "no difference"),  # One seed's luck.
        ((97,), (96,), "+1.00 points (+1.00); one seed cannot tell"),
        ((97, 97), (97, 97), "+0.00 ± 0.00 points (+0.00, +0.00); it made no diff"),
    ],
)
def test_effects_are_judged_by_the_seeds(one, other, told):
    said = results_table.effect("Both", row("G2SD", *one), row("MAE", *other), TOP1)
    assert said.startswith("**Both** (G2SD over MAE): ")
    assert told in said


def test_effects_compare_what_the_table_has():
    rows = [
        row("teacher", 99, generic="–", specific="–"),
        row("MAE", 95),
        row("G2SD", 97, generic="yes", specific="yes"),
    ]
    assert len(results_table.effects(rows, TOP1)) == 1
    rows.append(row("plain", 96, generic="yes"))
    rows.append(row("another", 90, generic="yes"))  # The first of a kind counts.
    said = results_table.effects(rows, TOP1)
    assert len(said) == 3
    assert said[0].startswith("**Generic distillation** (plain over MAE): +1.00")
    assert said[1].startswith("**Specific distillation after it** (G2SD over plain)")


def test_central_table_shares_and_units():
    rows = [row("teacher", 99.0, 97.0, params=2_500_000), row("MAE", 49.0, 49.0)]
    lines = results_table.markdown(*results_table.table(rows, TOP1)).split("\n")
    assert lines[0].startswith("| method | top-1 | share | generic | specific | params")
    assert lines[2].startswith("| teacher | 98.00 ± 1.41 | 100.0 % |")
    assert "| 2.50 | 2.00x | 99.0, 97.0 |" in lines[2]
    assert lines[3].startswith("| MAE | 49.00 ± 0.00 | 50.0 % |")


def test_a_task_with_two_scores_shows_both(tmp_path):
    rows = [row("teacher", 30.0)._replace(others={"mask AP": 25.0})]
    rows.append(row("MAE", 20.0)._replace(others={"mask AP": None}))
    header, cells = results_table.table(rows, core.Score("box_AP", "box AP"))
    assert (header[1], header[-1]) == ("box AP", "mask AP")
    assert [line[-1] for line in cells] == ["25.00", "–"]
    config = runs.small(runs.DETECTION[0])
    model = trained.Finished("run", config, stages.build(config), {}, {})
    (tmp_path / "DONE").write_text(json.dumps({"eval/mask_AP": 12.5}))
    assert results_table.other_scores(model, [str(tmp_path)]) == {"mask AP": 12.5}
    config = runs.small(
        "finetune"
    )  # Of five classes, the first five are all there are.
    model = trained.Finished("run", config, stages.build(config), {}, {})
    assert results_table.other_scores(model, [str(tmp_path)]) == {}


def test_a_run_is_scored_by_its_task(tmp_path):
    config = workdirs.to_json_dict(runs.small(runs.SEGMENTATION[0]))
    folders = [str(tmp_path / f"seed{seed}" / "teacher") for seed in range(2)]
    for path, miou in zip(folders, (31.0, 33.0), strict=True):
        folder = pathlib.Path(path)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        done = {"eval/mIoU": miou, "eval/pixels": 7}
        (folder / "DONE").write_text(json.dumps(done))
    assert results_table.scores_of(folders) == (31.0, 33.0)
    score = results_table.score_of(str(folder))
    assert (score.name, score.count) == ("mIoU", "pixels")
    assert chain_report.example_words(score, str(folder)) == (
        "7 pixels of held-out pictures"
    )
    header, _ = results_table.table([row("teacher", 31.0, 33.0)], score)
    assert header[1] == "mIoU"
    (folder / "DONE").write_text(json.dumps({"loss": 1.0}))
    with pytest.raises(ValueError, match="seed1/teacher='eval/mIoU' is not known"):
        results_table.scores_of(folders[1:])
    masked_config = workdirs.to_json_dict(runs.small("pretrain"))
    (folder / "config.json").write_text(json.dumps(masked_config))
    with pytest.raises(ValueError, match="trained for no task"):
        results_table.score_of(str(folder))


@pytest.mark.parametrize(
    ("before", "stage", "behind"),
    [
        ("pretrain", "finetune", ("no", "no")),
        ("generic_distill", "specific_seg", ("yes", "yes")),
        ("dmae_distill", "finetune", ("yes", "no")),
    ],
)
def test_what_distilled_a_run_is_read_from_the_one_before(
    tmp_path, before, stage, behind
):
    runs = {"before": dict(stage=before), "run": dict(stage=stage)}
    runs["run"]["init_from"] = str(tmp_path / "before")
    for name, config in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert results_table.stages_behind(str(tmp_path / "run")) == behind


def test_denormalise_undoes_the_target(rng):
    truth = rng.uniform(size=(2, 5, 16)).astype(np.float32)
    guess = masked.normalise_patches(truth)
    np.testing.assert_allclose(
        reconstructions.denormalise(guess, truth), truth, atol=1e-5
    )


def test_throughput_takes_turns():
    calls = []
    predicts = [lambda name=name: calls.append(name) or name for name in (0.0, 1.0)]
    speeds = speed.throughput(predicts, turns=3, calls=2)
    assert speeds.shape == (2, 3)
    assert (speeds > 0).all()
    # Once to compile, once to see how many fit a turn.
    assert calls == [0.0, 0.0, 1.0, 1.0, *[0.0, 0.0, 1.0, 1.0] * 3]


def test_a_slow_model_predicts_once_a_turn():
    calls = []
    slow = lambda: time.sleep(0.4) or calls.append(0) or 0.0
    speeds = speed.throughput([slow], turns=2)
    assert len(calls) == 4 and (speeds < 2.6).all()


def test_losses_of_a_short_run_are_drawn(tmp_path):
    curves = {"a": {"seed 0": np.zeros((0, 2))}, "b": {"seed 0": np.ones((3, 2))}}
    path = os.path.join(tmp_path, "losses.png")
    plots.curves(curves, dict.fromkeys(curves, "loss")).savefig(path)
    assert os.path.getsize(path) > 0


@pytest.mark.parametrize(
    "name", [n for n in recipes.names() if n.startswith("chains/")]
)
def test_every_chain_shrinks(name, tmp_path):
    planned = chain.plan(recipes.load(f"{name}:smoke,steps=2"), str(tmp_path))
    counts = {"chains/digits_dmae": 9, "chains/cifar10_controls": 51}
    counts["chains/cifar10_cpu"] = 23
    assert len(planned) == counts.get(name, 8)
    by_workdir = {step.workdir: step.config for step in planned}
    for step in planned:
        if "teacher" in step.config:  # Its weights will fit.
            taught = by_workdir[step.config.teacher.checkpoint].model
            for key in ("width", "depth", "heads", "patch", "image_size"):
                assert step.config.teacher.model[key] == taught[key], key
        assert step.config.total_steps == 2
        assert step.config.data.source in ("fake", "digits")
        assert step.config.compute_dtype == "float32"
