# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A detector from a COCO json to its report: trained, judged, asked, shown."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import coco_files
import runs
from g2sd_jax import cli, finished, loop
from g2sd_jax.data.coco import run_lengths
from g2sd_jax.evaluators import coco_ap
from g2sd_jax.kinds import detections, overlays
from g2sd_jax.pages import class_tables
from g2sd_jax.weights import loading

pytestmark = pytest.mark.slow  # The programs of a detector take minutes to compile.
COUNT = 12  # Nine of them have objects: a batch for eight devices, and one more.
NAMES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two splits of one json, whose pictures are named by their ids."""
    lists = coco_files.content(COUNT)
    for image in lists["images"]:
        image["file_name"] = f"{image['id']:06}.jpg"
    spoilt = coco_files.annotation(777, 50, (1, 1, 5, 5), segmentation=[[1, 2, 3, 4]])
    lists["annotations"].append(spoilt)
    root = tmp_path_factory.mktemp("coco")
    coco_files.write(root, lists)
    return coco_files.write(root, lists, "val")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """(workdir, what was printed) of a run of two steps."""
    config = runs.small(runs.DETECTION[0], batch=8, total_steps=2)
    read = coco_files.recipe(folder).data
    for key in ("source", "path", "images", "annotations", "max_boxes", "classes"):
        config.data[key] = read[key]
    config.data.train_examples = 9
    config.inference.least = 0.0  # Two steps teach nobody to be sure.
    workdir, printed = str(tmp_path_factory.mktemp("runs") / "det"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        final = loop.run(config, workdir)
    assert np.isfinite(list(final.values())[:8]).all()
    return workdir, printed.getvalue()


def test_what_is_printed_before_the_first_step(run):
    workdir, printed = run
    for words in (
        "category ids 3..90 (85 gaps) are numbered 0..2: 3 is 0 cat, 7 is 1 dog",
        "1 of 21 annotations are left out, in training and evaluation: polygons of "
        "fewer than three points 1 (annotations 777)",
        "3 of 12 pictures without an object are not trained on",
        "objects: 18 in 9 pictures, 1 to 3 in one",
        "objects of each class: cat 9, dog 6, owl 3",
        "sizes on a canvas of 64 x 64",
    ):
        assert words in printed, words
    with Image.open(f"{workdir}/first_batch.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height)) > 100
    describe = loading.read(workdir, "--workdir").describe
    assert describe["category_ids"] == [3, 7, 90]
    assert tuple(describe["class_names"]) == NAMES


def test_evaluation_is_that_of_the_results_that_predict_writes(
    run, folder, tmp_path, capsys
):
    """Both go through pycocotools, by ways that share only the network.

    Two steps find nothing of what is annotated, so half of the answers are.
    """
    workdir, _ = run
    pictures = sorted(str(path) for path in (folder / "val").glob("*.jpg"))
    argv = ["predict", *pictures, f"--workdir={workdir}", f"--out={tmp_path}/o"]
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for path, line in zip(pictures, lines[-COUNT:], strict=True):
        assert line.startswith(f"{path}: ") and line.endswith(".overlay.png")
        stem = overlays.stems([path])[path]
        with Image.open(tmp_path / "o" / f"{stem}.overlay.png") as drawn:
            assert min(drawn.size) >= 48
    results = json.loads((tmp_path / "o" / detections.RESULTS).read_text())
    ids = {entry["image_id"] for entry in results}
    assert ids and ids <= {*range(10, 130, 10)}
    assert {entry["category_id"] for entry in results} <= {3, 7, 90}
    lists = json.loads((folder / "val.json").read_text())
    lists["annotations"] = [
        entry | dict(id=number, iscrowd=0)
        for number, entry in enumerate(results[::2], start=1)
        if min(entry["bbox"][2:]) > 2 and area(entry)
    ]
    (folder / "own.json").write_text(json.dumps(lists))
    out = f"{workdir}/{class_tables.EVALUATION}"
    argv = ["evaluate", f"--workdir={workdir}", f"--out={out}"]
    assert cli.main([*argv, "--config.data.annotations=own.json"]) == 0
    assert "box AP50 %" in capsys.readouterr().out
    with open(out) as file:
        [figures] = json.load(file)["evaluators"].values()
    metrics = figures["metrics"]
    assert metrics["images"] == COUNT and metrics["box_AP50"] > 20
    assert [row["name"] for row in figures["classes"]] == [*NAMES]
    counts = [row["count"] for row in figures["classes"]]
    assert sum(counts) == len(lists["annotations"])
    for entry in lists["annotations"]:
        entry["area"] = area(entry)
    for prefix, task in coco_ap.TASKS.items():
        for entry in results:
            of_box = entry["bbox"][2] * entry["bbox"][3]
            entry["area"] = of_box if task == "bbox" else area(entry)
        with contextlib.redirect_stdout(io.StringIO()):
            truth, answers = COCO(), COCO()
            truth.dataset = lists
            answers.dataset = lists | dict(
                annotations=[
                    entry | dict(id=number, iscrowd=0)
                    for number, entry in enumerate(results, start=1)
                ]
            )
            for each in (truth, answers):
                each.createIndex()
            judge = COCOeval(truth, answers, task)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        names = [n for n in coco_ap.metric_names(100) if n.startswith(prefix)]
        for name, value in zip(names, judge.stats, strict=True):
            got = -1 if metrics[name] is None else metrics[name] / 100
            # Boxes and scores of the file are rounded.
            np.testing.assert_allclose(got, value, atol=0.01, err_msg=name)


def area(entry):
    """The pixels of a mask."""
    return float(run_lengths.area([entry["segmentation"]])[0])


def test_a_report_shows_tables_and_overlays(run, folder):
    workdir, _ = run
    picture = str(folder / "val" / "000020.jpg")
    out = f"{workdir}/{class_tables.EVALUATION}"
    assert cli.main(["evaluate", f"--workdir={workdir}", f"--out={out}"]) == 0
    assert cli.main(["predict", picture, f"--workdir={workdir}"]) == 0
    assert cli.main(["report", workdir]) == 0
    with open(f"{workdir}/report.html") as file:
        html = file.read()
    for text in (
        "det, eval: class by class",
        "What det learned from first",
        "What det finds",
        "box AP",
        "owl",
    ):
        assert text in html, text


def test_a_folder_is_needed_for_drawings(run, folder, capsys):
    workdir, _ = run
    picture = str(folder / "val" / "000020.jpg")
    argv = ["predict", picture, f"--workdir={workdir}", "--out=a.json"]
    assert cli.main(argv) == 2
    assert "results.json in it lists what is in all" in capsys.readouterr().err


def test_predict_without_ids_counts_classes_from_one(run, folder):
    model = finished.choose(run[0], "", "", {})
    picture = str(folder / "val" / "000020.jpg")
    [(path, pixels, answer)] = detections.detect(model, [picture])
    assert path == picture and pixels.shape == (88, 60, 3)
    entries = detections.to_results(answer, 1, None, path)
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3}
