# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the verbs make of a finished segmentor: overlays, tables, clear refusals."""

import base64
import json
import os
import re

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import finished_runs as made
import runs
from g2sd_jax import cli, finished, loop, palette
from g2sd_jax.data.memory import fake
from g2sd_jax.evaluators import confusion, tables
from g2sd_jax.kinds import overlays, segmentor
from g2sd_jax.tools import evaluate
from g2sd_jax.weights import loading

NAMES = ("sky", "road", "car", "tree", "pole")
LIMIT = 8  # Pictures that are judged.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A segmentor that was not trained, on invented pictures of many sizes."""
    folder = tmp_path_factory.mktemp("segmentor")
    path, *_ = made.workdir(folder, runs.SEGMENTATION[0], class_names=NAMES)
    return path


@pytest.fixture(scope="module")
def model(workdir):
    return finished.choose(workdir, "", "", {"data.limit": LIMIT})


@pytest.fixture(scope="module")
def originals(model):
    held_out = fake.load(model.config, model.config.data.eval_split, model.stage.reads)
    return [held_out.original(i) for i in range(LIMIT)]


@pytest.fixture(scope="module")
def pictures(originals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{i}.png") for i in range(len(originals))]
    for path, own in zip(paths, originals, strict=True):
        Image.fromarray(own["image"]).save(path)
    return paths


@pytest.fixture(scope="module")
def figures(model):
    return evaluate.evaluate(model)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image), np.asarray(image.convert("RGB"))


def test_overlays_show_what_evaluation_judges(
    workdir, figures, originals, pictures, tmp_path, capsys
):
    argv = ["predict", *pictures, f"--workdir={workdir}", f"--out={tmp_path}/o"]
    assert cli.main(argv) == 0
    told = capsys.readouterr().out.splitlines()
    answers = json.loads((tmp_path / "o" / segmentor.SHARES).read_text())
    total = np.zeros((5, 5), np.int64)
    for i, (own, answer) in enumerate(zip(originals, answers, strict=True)):
        labels, _ = read(tmp_path / f"o/{i}.labels.png")
        total += confusion.count_pixels(labels, own["label_map"], 5)
        assert answer["image"] == pictures[i]
        for label, name in enumerate(NAMES):
            share = (labels == label).mean()
            assert answer["shares"].get(name, 0) == pytest.approx(share)
        order = [share for _, share in overlays.shares(labels)]
        assert order == sorted(order, reverse=True)
        [line] = [line for line in told if line.startswith(pictures[i])]
        largest = max(answer["shares"], key=answer["shares"].get)
        assert line.startswith(f"{pictures[i]}: {largest} ")
        assert line.endswith(f"o/{i}.overlay.png")

        height, width = labels.shape
        factor = -(-overlays.SMALLEST // max(labels.shape))
        _, drawn = read(tmp_path / f"o/{i}.overlay.png")
        want = palette.tint(own["image"], labels)
        shown = drawn[: factor * height : factor, : factor * width : factor]
        np.testing.assert_array_equal(shown, want)
        legend = drawn[factor * height :]
        for label in range(5):
            here = (legend == palette.colours()[label]).all(axis=-1).any()
            assert here == (label in labels), label
    assert total.tolist() == figures["evaluators"]["eval"]["confusion"]
    assert len(np.unique(total.sum(axis=0).nonzero())) > 1  # Not one class for all.


def test_overlays_go_into_the_workdir_and_looks_count(workdir, pictures, tmp_path):
    assert cli.main(["predict", pictures[0], f"--workdir={workdir}"]) == 0
    plain, _ = read(f"{workdir}/{segmentor.FOLDER}/0.labels.png")
    argv = ["predict", pictures[0], f"--workdir={workdir}", f"--out={tmp_path}"]
    argv += ["--config.inference.flip=true", "--config.inference.scales=0.5,1,2"]
    assert cli.main(argv) == 0
    assert (read(tmp_path / "0.labels.png")[0] != plain).any()


def test_a_checkpoint_serves_as_its_workdir_and_stays_as_it_is(workdir, pictures):
    step = f"{workdir}/checkpoints/1"
    held = sorted(os.listdir(step))
    assert cli.main(["predict", pictures[0], f"--workdir={workdir}"]) == 0
    path = f"{workdir}/{segmentor.FOLDER}/0.labels.png"
    want, _ = read(path)
    for flags in (
        [f"--workdir={step}"],
        [f"--workdir={workdir}", f"--checkpoint={step}"],
    ):
        os.remove(path)
        assert cli.main(["predict", pictures[0], *flags]) == 0
        np.testing.assert_array_equal(read(path)[0], want)
    assert cli.main(["export", f"--workdir={step}", "--format=safetensors"]) == 0
    assert os.path.exists(f"{workdir}/export/safetensors/model.safetensors")
    assert sorted(os.listdir(step)) == held


def test_pictures_that_can_not_be_read_are_left_out(
    workdir, pictures, tmp_path, capsys
):
    with open(pictures[0], "rb") as file:
        whole = file.read()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    bad = [str(tmp_path / "text.png"), str(tmp_path / "half.png")]
    argv = [f"--workdir={workdir}", f"--out={tmp_path}/o"]
    assert cli.main(["predict", *bad, *argv]) == 2
    assert "error: 2 of 2 pictures" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    given = [bad[0], pictures[0], bad[1], pictures[1]]
    assert cli.main(["predict", *given, *argv]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: 2 of 4 pictures could not be read: ")
    assert said.err.count("\n") == 1 and all(path in said.err for path in bad)
    for path in bad:
        assert f"{path} cannot be decoded as a picture and is left out: " in said.out
    answers = json.loads((tmp_path / "o" / segmentor.SHARES).read_text())
    assert [answer["image"] for answer in answers] == pictures[:2]
    for i, answer in enumerate(answers):
        assert answer["labels"] == f"{tmp_path}/o/{i}.labels.png"
        with Image.open(pictures[i]) as own:
            assert read(answer["labels"])[0].shape == own.size[::-1]


def test_the_table_tells_share_iou_and_acc(workdir, figures, tmp_path, capsys):
    out = tmp_path / "evaluation.json"
    argv = ["evaluate", f"--workdir={workdir}", f"--out={out}"]
    argv += [f"--config.data.limit={LIMIT}", "--config.batch=8"]  # More windows.
    assert cli.main(argv) == 0
    told = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())["evaluators"]["eval"]
    assert found["confusion"] == figures["evaluators"]["eval"]["confusion"]
    counts = np.array(found["confusion"])
    scores = confusion.scores(counts)
    for key in ("mIoU", "mAcc", "aAcc"):
        assert found["metrics"][key] == scores[key]
        assert any(f"{key} {scores[key]:.4g}" in line for line in told)
    assert found["windows_per_s"] > 0 and "images_per_s" not in found
    [header] = [i for i, line in enumerate(told) if "share %   IoU %   Acc %" in line]
    hit, truth = np.diag(counts), counts.sum(axis=1)
    union = truth + counts.sum(axis=0) - hit
    for label, name in enumerate(NAMES):
        cells = told[header + 1 + label].split()
        want = (truth[label] / truth.sum(), hit[label] / union[label])
        want = [*want, hit[label] / truth[label]]
        assert cells[:4] == [name, *(f"{100 * value:.2f}" for value in want)]
    [first] = [line for line in told if line.startswith("     0:")]
    share = np.round(100 * counts[0] / counts[0].sum()).astype(int)
    assert first.split()[1:] == [str(value) for value in share]


def test_many_classes_are_shown_from_the_lowest_iou():
    counts = np.diag(np.arange(30)) + 1
    counts[29, 29] = 0
    lines = tables.column_lines(confusion.pixel_tables(counts, ())[0])
    assert lines[1].split()[0] == "29" and "20 lowest of 30" in lines[-1]
    counts[3] = counts[:, 3] = 0  # Neither there nor predicted: nothing to tell.
    classes, _ = confusion.pixel_tables(counts, ())
    rows = classes.rows
    assert (rows[3]["share"], rows[3]["iou"], rows[3]["recall"]) == (0.0, None, None)
    assert "  3 " not in "\n".join(tables.column_lines(classes))


def test_a_file_of_it_needs_no_recipe(workdir, figures, pictures, tmp_path, capsys):
    argv = ["export", f"--workdir={workdir}", "--format=safetensors"]
    assert cli.main([*argv, f"--out={tmp_path}"]) == 0
    path = str(tmp_path / "model.safetensors")
    same = finished.choose("", path, "", {"data.limit": LIMIT, "data.source": "fake"})
    assert same.config.inference.stride == (43, 43)
    found = evaluate.evaluate(same)["evaluators"]["eval"]
    assert found["confusion"] == figures["evaluators"]["eval"]["confusion"]
    assert [row["name"] for row in found["classes"]] == list(NAMES)
    assert cli.main(["predict", pictures[0], f"--checkpoint={path}"]) == 2
    assert "is a file: say with --out=FOLDER" in capsys.readouterr().err
    # Without its auxiliary head it serves as well, without a mean of the batches not.
    arrays = safetensors.numpy.load_file(path)
    describe = loading.read(path, "--checkpoint").describe
    meta = {"g2sd_jax": json.dumps(dict(describe))}
    some = {n: a for n, a in arrays.items() if not n.startswith("auxiliary")}
    safetensors.numpy.save_file(some, path, metadata=meta)
    assert "auxiliary_head" not in finished.choose("", path, "", {}).variables["params"]
    del some["decode_head.bottleneck.bn.running_mean"]
    safetensors.numpy.save_file(some, path, metadata=meta)
    with pytest.raises(ValueError, match="also keeps batch_stats, which a weight file"):
        finished.choose("", path, "", {})


def test_what_a_segmentor_can_not_do_is_told(workdir, pictures, tmp_path, capsys):
    twin = tmp_path / "0.jpg"
    Image.new("RGB", (8, 8)).save(twin)
    run = f"--workdir={workdir}"
    for argv, told in (
        (["embed", *pictures[:1], run, "--out=a.npz"], "is a segmentor, whose encoder"),
        (["analyse", workdir, workdir, "--out=a.json"], "is a segmentor"),
        (["reconstruct", pictures[0], run, "--out=a.png"], "and predicts no pixels"),
        (["predict", pictures[0], str(twin), run], "would both be written as 0.over"),
        (["predict", "none.png", run, f"--out={tmp_path}/o"], "no picture none.png"),
        (
            ["predict", pictures[0], run, f"--out={twin}"],
            "0.jpg is a file, but what",
        ),
        (
            ["predict", pictures[0], run, "--out=a.json"],
            "a.json is a file, but what",
        ),
    ):
        assert cli.main(argv) == 2, argv
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1, (argv, err)
    assert not (tmp_path / "o").exists()


def test_an_older_run_is_completed_by_its_task(workdir, tmp_path, capsys):
    with open(f"{workdir}/config.json") as file:
        config = json.load(file)
    del config["inference"]["flip"], config["inference"]["scales"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = finished.config_of(str(tmp_path)).inference
    assert (found.flip, found.scales) == (False, (1.0,))
    said = capsys.readouterr().out
    assert "is older than inference.flip, inference.scales" in said
    assert "as the recipe finetune:task=segmentation has them" in said


@pytest.mark.slow  # `pages` tests each of these parts.
def test_a_page_of_a_run_shows_scores_classes_and_overlays(tmp_path, pictures, capsys):
    run = str(tmp_path / "run")
    config = runs.small(
        runs.SEGMENTATION[0], total_steps=4, first_batch_images=2, log_every=1
    )
    config.data.limit, config.data.train_examples = 16, 16
    loop.run(config, run)
    for argv in (
        ["evaluate", f"--workdir={run}", f"--out={run}/evaluation.json"],
        ["predict", pictures[0], f"--workdir={run}"],
        ["report", run],
    ):
        assert cli.main(argv) == 0
    html = (tmp_path / "run/report.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {run}/report.html"
    done = json.loads((tmp_path / "run/DONE").read_text())
    figures = json.loads((tmp_path / "run/evaluation.json").read_text())
    found = figures["evaluators"]["eval"]
    assert found["metrics"]["mIoU"] == done["eval/mIoU"]
    for text in (
        "<td>eval/mIoU</td>",
        f"{done['eval/mIoU']:.4g}</td>",
        "run, eval: class by class",
        "<th>share (%)</th>",
        "<th>Acc (%)</th>",
        f"{found['classes'][0]['share']:.2f}</td>",
        "What run learned from first",
        "What run sees",
        "overlays/0.overlay.png.",
    ):
        assert text in re.sub(r"<th [^>]*>", "<th>", html), text
    for name in ("first_batch.png", "overlays/0.overlay.png"):
        data = base64.b64encode((tmp_path / "run" / name).read_bytes()).decode()
        assert data in html, name
