# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a chain on own pictures asks about them, and the recipe it makes of it."""

import pytest

import files
import runs
from g2sd_jax import loop, open_keys, recipes, stages
from g2sd_jax.measure import counting, step_speed, survey
from g2sd_jax.tools import chain

LABELLED = files.photographs(per_class=5, splits=("train", "val"), classes="abc")


@pytest.fixture(autouse=True)
def _machine_of_known_speed(monkeypatch):
    monkeypatch.setattr(step_speed, "matmul_peak", lambda dtype: 0.1)


def without_split(name):
    return name.removeprefix("train/").removeprefix("val/")


@pytest.mark.parametrize(
    ("contents", "pictures", "classes", "split"),
    [
        (LABELLED, 15, 3, "train+val"),
        (
            {n.replace("val/", "test/"): d for n, d in LABELLED.items()},
            15,
            3,
            "train+test",
        ),
        ({without_split(n): d for n, d in LABELLED.items()}, 12, 3, "hold_out"),
        ({n.replace("/", "_"): d for n, d in LABELLED.items()}, 30, 0, "none"),
    ],
    ids=["splits", "splits by other names", "class folders", "pictures alone"],
)
def test_folders_are_surveyed(tmp_path, contents, pictures, classes, split):
    root = files.write(tmp_path, contents)
    facts = counting.count_classes(str(root), {})
    counted = (facts["pictures"], facts["classes"], facts["split"])
    assert counted == (pictures, classes, split)
    assert 30 <= facts["side"] <= 46


def test_the_machine_is_measured():
    facts = survey.machine()
    assert facts["gflops"] >= 100 and facts["device"] == "cpu"


def test_classes_of_the_evaluation_pictures_judge_features(tmp_path):
    """Where the training pictures have none; where none has any, nothing is judged."""
    flat = lambda n: n if "val" in n else f"train/{n.replace('/', '_')}"
    root = files.write(tmp_path, {flat(n): data for n, data in LABELLED.items()})
    spec = f"chains/folder:path={root}"
    config, facts = survey.complete(spec, recipes.load(spec), {}, {})
    counted = facts["classes"], facts["judged"], facts["split"], facts["pictures"]
    assert counted == (0, 3, "train+val", 15) and not config.rows
    steps = chain.plan(config, str(tmp_path / "chain"))
    assert {step.config.monitor.neighbours for step in steps} == {5}
    config = open_keys.fill(steps[0].config, str(tmp_path / "new"))
    evaluator = stages.build(config).evaluators["knn"]
    rows = [e for _, examples in evaluator.batches() for e in examples]
    assert [row["label"] for row in rows].count(2) == 5 and len(rows) == 15
    none = FACTS.replace("classes=5", "classes=0")
    nothing = f"chains/folder:path={root},{none},judged=0"
    steps = chain.plan(recipes.load(nothing), str(tmp_path / "other"))
    assert {step.config.monitor.neighbours for step in steps} == {0}


def test_training_pictures_alone_are_refused_with_what_to_name(tmp_path):
    root = files.write(tmp_path, {n: d for n, d in LABELLED.items() if "train" in n})
    with pytest.raises(ValueError, match="a share of its pictures is then held out"):
        counting.count_classes(str(root), {})


def completed(tmp_path, arguments=""):
    root = files.write(tmp_path / "set", LABELLED)
    spec = f"chains/folder:path={root}{arguments}"
    return survey.complete(spec, recipes.load(spec), {}, {})


def test_the_recipe_is_read_again_with_the_facts(tmp_path):
    config, facts = completed(tmp_path)
    assert "survey" not in config and facts["pictures"] == 15
    planned = chain.plan(config, str(tmp_path / "chain"))
    names = [step.name.split("/")[1] for step in planned]
    assert names[:2] == ["teacher_mae", "teacher"]
    assert len(planned) == 8
    model = planned[0].config.model
    assert max(model.image_size) <= 46 and not model.image_size[0] % model.patch


def test_a_restart_takes_the_facts_of_the_first_start(tmp_path):
    config, facts = completed(tmp_path)
    spec = f"chains/folder:path={tmp_path / 'set'}"
    again, stored = survey.complete(
        spec, recipes.load(spec), {}, facts | {"pictures": 9999}
    )
    assert stored["pictures"] == 9999 and again.steps != config.steps


def test_facts_that_are_given_are_not_taken(tmp_path):
    _, facts = completed(tmp_path, ",pictures=7,gflops=50.0")
    assert set(facts) == {"classes", "side", "split", "device", "judged"}


def test_hours_and_speed_set_the_epochs():
    known = "pictures=20000,classes=5,side=240,split=train+val,device=cpu"
    epochs = lambda more: recipes.load(f"chains/folder:path=x,{known},{more}").epochs
    slow, fast = epochs("gflops=50.0"), epochs("gflops=200.0")
    assert 1 <= slow.masked < fast.masked and slow.tuned < fast.tuned
    assert epochs("gflops=50.0,hours=4").masked > slow.masked
    assert epochs("gflops=50.0,epochs=12").to_dict() == dict(masked=12.0, tuned=6.0)


def test_fewer_rows_need_fewer_steps():
    known = "pictures=650,classes={},side=240,split=train+val,device=cpu,gflops=100.0"
    names = lambda more, classes=5: [
        name
        for name, *_ in recipes.load(
            f"chains/folder:path=x,{known.format(classes)}{more}"
        ).steps
    ]
    assert names(",rows=g2sd") == [
        "teacher_mae",
        "teacher",
        "student_generic",
        "g2sd_generic",
        "g2sd",
    ]
    assert set(names("")) - set(names(",rows=ends")) == {"mae_ms", "g2sd_generic"}
    assert names("", classes=0) == ["teacher_mae", "student_mae", "student_generic"]
    with pytest.raises(ValueError, match="rows='some' is not known"):
        names(",rows=some")


def test_named_sizes_and_others(tmp_path):
    known = "pictures=650,classes=5,side=240,split=train+val,device=gpu,gflops=9e4"
    config = recipes.load(f"chains/folder:path=x,{known},student=ti16,teacher=s16")
    steps = chain.plan(config, str(tmp_path))
    assert steps[2].config.model.size == "ti16"
    assert steps[2].config.compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="'tiny' is no size; write WIDTHxDEPTH"):
        recipes.load(f"chains/folder:path=x,{known},student=tiny")


FACTS = "pictures=650,classes=5,side=240,split=train+val,device=cpu,gflops=100.0"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The workdir of a masked autoencoder."""
    folder = tmp_path_factory.mktemp("pretrained")
    loop.run(runs.small("pretrain", total_steps=1), str(folder))
    return folder


def test_a_teacher_that_is_there_is_read_and_only_tuned(tmp_path, pretrained):
    spec = f"chains/folder:path={tmp_path},teacher={pretrained},{FACTS}"
    config, facts = survey.complete(spec, recipes.load(spec), {}, {})
    model = runs.small("pretrain").model
    assert facts["teacher_kind"] == "autoencoder"
    sizes = facts["teacher_width"], facts["teacher_depth"], facts["teacher_patch"]
    assert sizes == (model.width, model.depth, model.patch)
    planned = chain.plan(config, str(tmp_path / "chain"))
    by_name = {step.name.split("/")[1]: step.config for step in planned}
    assert next(iter(by_name)) == "teacher" and len(by_name) == 7
    assert by_name["teacher"].init_from == str(pretrained)
    assert by_name["teacher"].total_epochs < by_name["mae"].total_epochs
    generic = by_name["student_generic"]
    assert generic.teacher.checkpoint == str(pretrained)
    assert generic.distill.target == "decoder"
    # Those whose pictures are shared have patches of one size.
    assert by_name["g2sd"].model.patch == model.patch
    assert stages.build(generic).frozen()  # Its decoder knows one grid of patches.
    assert generic.teacher.model.width == model.width
    assert {c.model.image_size for c in by_name.values()} == {model.image_size}
    spec += f",image={2 * model.image_size[0]}"
    with pytest.raises(ValueError, match=r"sees pictures of 16 pixels, .* leave image"):
        survey.complete(spec, recipes.load(spec), {}, {})


def test_a_smoke_run_takes_the_teacher_that_is_there(tmp_path, pretrained):
    """Its pictures are invented, so only the teacher is asked about."""
    spec = f"chains/folder:smoke=True,steps=2,teacher={pretrained}"
    config, facts = survey.complete(spec, recipes.load(spec), {}, {})
    assert all(name.startswith("teacher_") for name in facts)
    steps = chain.plan(config, str(tmp_path))
    assert {step.config.data.source for step in steps} == {"fake"}
    assert {step.config.total_steps for step in steps} == {2}
    by_name = {step.name.split("/")[1]: step.config for step in steps}
    assert stages.build(by_name["student_generic"]).frozen()
    assert by_name["teacher"].init_from == str(pretrained)


def test_an_encoder_is_learned_from_as_one(tmp_path):
    about = "teacher_kind=encoder,teacher_width=384,teacher_depth=12,teacher_patch=14"
    about += ",teacher_mean=0.5+0.4+0.3,teacher_std="
    spec = f"chains/folder:path=x,teacher=some/dinov2,{FACTS},{about}"
    steps = chain.plan(recipes.load(spec), str(tmp_path))
    by_name = {step.name.split("/")[1]: step.config for step in steps}
    assert by_name["student_generic"].distill.target == "encoder"
    assert by_name["g2sd"].model.image_size == (112, 112)
    means = {tuple(config.data.mean) for config in by_name.values()}
    assert means == {(0.5, 0.4, 0.3)}


def test_a_teacher_may_lie_in_the_home_folder(pretrained, monkeypatch):
    monkeypatch.setenv("HOME", str(pretrained.parent))
    facts = survey.take_teacher(f"~/{pretrained.name}")
    assert facts["teacher_kind"] == "autoencoder"


def test_a_teacher_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'tiny' is no size .* no such workdir"):
        completed(tmp_path, ",teacher=tiny")
