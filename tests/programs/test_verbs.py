# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The verbs that ask a finished model, on two tiny ones trained on digits."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from scipy import special

from g2sd_jax import cli, finished, loop, stages
from g2sd_jax.data import source
from g2sd_jax.kinds import vit
from g2sd_jax.measure import likeness
from g2sd_jax.models import features
from g2sd_jax.ops import augment
from g2sd_jax.pages import fingerprint, page, reconstructions, sections
from g2sd_jax.tools import analyse, embed, evaluate, probe
from g2sd_jax.weights import agreement, loading

LIMIT = 70  # Held-out digits that are judged; no multiple of the batch.


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A classifier of few steps and an autoencoder of fewer."""
    made = {}
    for name, steps in (("mae", 150), ("student_mae", 2)):
        config = fingerprint.config_of("chains/digits", name)
        with config.unlocked():
            config.update(dict(progress=False, total_steps=steps, log_every=50))
        config.optim.warmup_epochs = 0.0
        made[name] = str(tmp_path_factory.mktemp(name))
        loop.run(config, made[name])
    return made


@pytest.fixture(scope="module")
def classifier(workdirs):
    overrides = {"data.limit": LIMIT, "data.train_examples": LIMIT}
    return finished.choose(workdirs["mae"], "", "", overrides)


@pytest.fixture(scope="module")
def autoencoder(workdirs):
    return finished.from_run(workdirs["student_mae"])


@pytest.fixture(scope="module")
def figures(classifier):
    return evaluate.evaluate(classifier)


@pytest.fixture
def files(classifier, tmp_path):
    """The first held-out digits as picture files."""
    config = classifier.config
    held_out = source.load(config, config.data.eval_split, evaluate=True)
    paths = []
    for index, image in enumerate(held_out.fetch(np.arange(3))["image"]):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image[..., 0]).save(paths[-1])
    return paths


def test_evaluation_agrees_with_the_run_and_with_its_tables(
    workdirs, figures, tmp_path, capsys
):
    found = figures["evaluators"]["eval"]
    assert found["metrics"]["count"] == LIMIT
    counts = np.array(found["confusion"])
    assert counts.sum() == LIMIT
    assert 100 * np.trace(counts) / LIMIT == pytest.approx(found["metrics"]["top1"])
    assert [row["name"] for row in found["classes"]] == list("0123456789")
    assert found["images_per_s"] > 0
    assert figures["params"] == 15_586

    out = tmp_path / "all.json"
    assert cli.main(["evaluate", f"--workdir={workdirs['mae']}", f"--out={out}"]) == 0
    told = json.loads(out.read_text())["evaluators"]["eval"]["metrics"]
    with open(f"{workdirs['mae']}/DONE") as file:
        done = json.load(file)
    assert told == {k: done[f"eval/{k}"] for k in ("top1", "top5", "count")}
    assert f"top1 {told['top1']:.4g}, top5" in capsys.readouterr().out


def test_a_file_that_describes_itself_needs_no_recipe(workdirs, figures, tmp_path):
    weights = loading.read(workdirs["mae"], "--workdir")
    path = str(tmp_path / "student.safetensors")
    # Of a transposed view, save_file would write the bytes in the wrong order.
    arrays = {key: np.ascontiguousarray(x) for key, x in weights.arrays.items()}
    meta = {"g2sd_jax": json.dumps(dict(weights.describe))}
    safetensors.numpy.save_file(arrays, path, metadata=meta)
    assert weights.describe["data"] == {"source": "digits"}
    data = {"data.limit": LIMIT, "batch": 64}
    model = finished.choose("", path, "", data)
    found = evaluate.evaluate(model)["evaluators"]["eval"]
    assert found["confusion"] == figures["evaluators"]["eval"]["confusion"]

    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match="add the recipe it fits, such as --config="):
        finished.choose("", path, "", data)


def test_a_picture_gets_the_answer_evaluation_gives(classifier, files):
    evaluator = classifier.stage.evaluators["eval"]
    batch, _ = next(iter(evaluator.batches()))
    logits = jax.jit(evaluator.predict)(classifier.variables, {}, batch)["logits"]
    expected = special.softmax(np.asarray(logits[:3], np.float64), axis=-1)
    answers = list(vit.predict(classifier, files))
    assert [answer["image"] for answer in answers] == files
    for answer, row in zip(answers, expected, strict=True):
        np.testing.assert_allclose(
            list(answer["probabilities"].values()), row, rtol=1e-4
        )
        assert answer["class"] == str(row.argmax())


def test_what_an_autoencoder_can_not_do_is_told(workdirs, files, capsys):
    wrong = {
        ("predict", *files[:1], f"--workdir={workdirs['student_mae']}"): "pretrain, wh",
        ("reconstruct", files[0], f"--workdir={workdirs['mae']}", "--out=a.png"): (
            "is a run of stage finetune and predicts no pixels"
        ),
        ("evaluate", f"--workdir={workdirs['student_mae']}"): "judges nothing as it is",
        ("evaluate",): "name what to ask: --workdir=DIR of a run",
        ("predict", "none.png", f"--workdir={workdirs['mae']}"): "no picture none.png",
        ("embed", f"--workdir={workdirs['mae']}", "--out=a.csv"): "--out: the ending=",
    }
    for argv, told in wrong.items():
        assert cli.main(list(argv)) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1


def test_features_are_those_the_head_reads(classifier, autoencoder):
    found = embed.embed(classifier)
    assert found["features"].shape == (LIMIT, 24)
    np.testing.assert_array_equal(found["index"], np.arange(LIMIT))
    head = classifier.variables["params"]["head"]
    logits = found["features"][:64] @ head["kernel"] + head["bias"]
    evaluator = classifier.stage.evaluators["eval"]
    batch, _ = next(iter(evaluator.batches()))
    expected = jax.jit(evaluator.predict)(classifier.variables, {}, batch)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    # Whole pictures: the autoencoder's own mask of 75 % plays no part.
    image = augment.prepare(batch, {}, autoencoder.spec)["image"]
    module = autoencoder.model()
    run = jax.jit(lambda v, x: features.blocks(module, v, x, "class"))
    blocks = np.asarray(run(autoencoder.variables, image))
    assert blocks.shape == (2, 64, 24)
    changed = image.at[:, :4, :4].add(1.0)  # Any patch reaches the class token.
    moved = np.abs(np.asarray(run(autoencoder.variables, changed)) - blocks)
    assert (moved.max(axis=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize(
    ("layer", "token", "told"),
    [("3", "", "has blocks 1 to 2; or last"), ("last", "pool", "--token='pool'")],
)
def test_an_unknown_layer_or_token_is_refused(classifier, layer, token, told):
    with pytest.raises(ValueError, match=told):
        embed.encoder(classifier, layer, token)


def test_probes_find_what_features_tell(rng, tmp_path, capsys):
    label = rng.integers(0, 3, size=90)
    features_of = np.eye(3)[label] + 0.05 * rng.normal(size=(90, 3))
    good = dict(features=features_of.astype(np.float32), label=label, what="x")
    shuffled = good | dict(label=rng.permutation(label))
    assert probe.neighbours(good, good, 5) == probe.linear(good, good, 1.0) == 100
    assert probe.neighbours(shuffled, good, 5) < 60
    assert probe.linear(shuffled, good, 1.0) < 60
    paths = [str(tmp_path / f"{name}.npz") for name in ("train", "val")]
    for path in paths:
        np.savez(path, **good)
    assert cli.main(["probe", *paths]) == 0
    assert json.loads(capsys.readouterr().out)["linear_top1"] == 100
    seven = {key: value[:7] for key, value in shuffled.items() if key != "what"}
    np.savez(paths[1], **seven, what="x")
    assert cli.main(["probe", *paths]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert all(value == round(value, 2) for value in list(figures.values())[:2])
    np.savez(paths[1], features=features_of)
    assert cli.main(["probe", *paths]) == 2
    assert "a probe needs features and label" in capsys.readouterr().err


def test_visible_patches_are_pasted_back(
    workdirs, autoencoder, files, tmp_path, capsys
):
    out = tmp_path / "guess.png"
    argv = ["reconstruct", *files, f"--workdir={workdirs['student_mae']}"]
    assert cli.main([*argv, f"--out={out}"]) == 0
    assert "was trained on patches normalised by their own" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")

    ((batch, _),) = autoencoder.batches(files, at_once=True)
    shown = reconstructions.reconstruct(autoencoder, batch, "normalised")
    hidden = np.isnan(shown["visible"])
    assert hidden.mean() == 0.75
    original, guess = shown["original"], shown["reconstruction"]
    np.testing.assert_allclose(guess[~hidden], original[~hidden], atol=1e-6)
    np.testing.assert_allclose(original * 255, batch["image"], atol=1e-3)
    assert np.abs(guess - original)[hidden].max() > 0.1
    assert cli.main([*argv, f"--out={out}", "--target=raw"]) == 2
    assert "was trained on normalised pixels" in capsys.readouterr().err


def test_nothing_hidden_is_plain_accuracy(classifier, figures):
    found = likeness.occlusion_curves(
        {"a": classifier, "b": classifier}, shares=(0.0, 0.5, 1.0)
    )
    plain = figures["evaluators"]["eval"]["metrics"]["top1"]
    assert (found["hidden"], found["patches"]) == ([0, 8, 16], 16)
    assert found["curves"]["a"] == found["curves"]["b"]
    for order, curve in found["curves"]["a"].items():
        assert curve[0] == plain, order
        assert curve[1] < plain
    ends = {curve[2] for curve in found["curves"]["a"].values()}
    assert len(ends) == 1  # Nothing is left to tell the orders apart.


def test_a_model_sees_like_itself(classifier):
    found = likeness.cka_maps({"a": classifier, "b": classifier}, "patches", LIMIT)
    cka = np.array(found["against"]["b"]["cka"])
    assert found["examples"] == LIMIT
    np.testing.assert_allclose(np.diag(cka), 1, atol=1e-9)
    assert 0 < cka[0, 1] < 1


def test_an_analysis_says_which_report_draws_it(tmp_path):
    place = lambda name: analyse.where_drawn(str(tmp_path / name))
    assert "once it lies in the folder of a run or a chain" in place("analysis.json")
    (tmp_path / "config.json").write_text("{}")
    assert place("analysis.json") == f"g2sd report {tmp_path} draws it"
    assert place("other.json").endswith("as analysis.json")


def test_runs_side_by_side_are_one_page(workdirs):
    html = sections.of_runs(workdirs)
    assert "<title>Runs side by side</title>" in html
    assert "<code>stage</code></td><td>finetune</td><td>pretrain</td>" in html.replace(
        "\n", ""
    ).replace("  ", "")
    assert "What student_mae guesses" in html and "What mae guesses" not in html
    outside = html.replace("http://www.w3.org", "")
    assert "http" not in outside and "<script" not in outside


def test_a_page_shows_text_as_text():
    told = page.html("<a>", [page.Section("b", [page.text("1 < 2, **so** `x`")])])
    assert "<title>&lt;a&gt;</title>" in told
    assert "1 &lt; 2, <strong>so</strong> <code>x</code>" in told
    table = page.table(["name", "value"], [["a", "1.5"], ["b", "–"]])
    assert table["numeric"] == [False, True]


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (("cat", "dog"), None),
        ((), None),
        (("dog", "cat"), "its label 0 is 'dog', that of the data 'cat'"),
        (("cat", "cow", "dog"), "it knows 3 classes (cat, cow, dog), the data 2"),
    ],
)
def test_a_head_of_other_classes_is_refused(theirs, told):
    weights = loading.Weights("runs/t", {}, dict(class_names=theirs))
    names = lambda: ("cat", "dog")
    if told is None:
        agreement.check_classes(weights, names, "config.teacher.checkpoint")
        return
    with pytest.raises(ValueError) as error:
        agreement.check_classes(weights, names, "config.teacher.checkpoint")
    assert told in str(error.value)
    assert str(error.value).startswith("config.teacher.checkpoint='runs/t' was trained")


def test_a_run_asks_its_teacher_for_the_names_of_its_classes(workdirs, tmp_path):
    weights = loading.read(workdirs["mae"], "--workdir")
    arrays = {key: np.ascontiguousarray(x) for key, x in weights.arrays.items()}
    path = str(tmp_path / "teacher.safetensors")
    config = fingerprint.config_of("chains/digits", "g2sd")
    for key in ("width", "depth", "heads"):
        config.teacher.model[key] = config.model[key]
    config.teacher.checkpoint = path
    for names in ("0123456789", "0123456798"):
        describe = dict(weights.describe, class_names=tuple(names))
        meta = {"g2sd_jax": json.dumps(describe)}
        safetensors.numpy.save_file(arrays, path, metadata=meta)
        if names == "0123456789":
            assert "head" in stages.build(config).frozen()["params"]
            continue
        with pytest.raises(
            ValueError, match="its label 8 is '9', that of the data '8'"
        ):
            stages.build(config).frozen()


def test_an_older_config_is_completed_and_it_is_said(workdirs, tmp_path, capsys):
    with open(f"{workdirs['mae']}/config.json") as file:
        config = json.load(file)
    del config["data"]["class_list"], config["augment"]["erase"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = finished.config_of(str(tmp_path), {"data.limit": 7})
    assert (found.data.class_list, found.augment.erase) == ("", 0.25)
    assert found.data.limit == 7
    said = capsys.readouterr().out
    assert "is older than augment.erase, data.class_list: taken as the recipe" in said
