# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Average precision from a network's answers: by hand, over hosts, at the edges."""

import sys

import numpy as np
import pytest

from g2sd_jax.data import order
from g2sd_jax.data.coco import run_lengths
from g2sd_jax.data.memory import fake
from g2sd_jax.evaluators import coco_ap, instances, tables
from g2sd_jax.ops import instance_masks

CLASSES, BATCH, SIZE = 3, 4, (32, 48)
LAYOUT = dict(max_boxes=8, mask_size=28)
ROWS = 8  # Detections of a picture.


@pytest.fixture(scope="module")
def dataset():
    return fake.dataset(10, SIZE, 3, CLASSES, ("boxes",), layout=LAYOUT)


def batches(dataset, host=0, hosts=1):
    return order.eval_batches(dataset, BATCH, host, hosts)


def perfect(variables, frozen, batch):
    """The answers of a network that has read the annotations."""
    return {
        "boxes": batch["boxes"],
        "scores": np.where(batch["valid_boxes"], 0.9, 0.0).astype(np.float32),
        "labels": batch["labels"],
        "valid": batch["valid_boxes"],
        "masks": batch["masks"].astype(np.float32),
        "size": batch["size"],
    }


def empty(variables, frozen, batch):
    outputs = perfect(variables, frozen, batch)
    return outputs | {"valid": np.zeros_like(outputs["valid"])}


def evaluator(predict, dataset, **options):
    return coco_ap.evaluator(predict, lambda: batches(dataset), CLASSES, **options)


def folded(judge, dataset, hosts=1):
    states = []
    for host in range(hosts):
        state = judge.start()
        for batch, examples in batches(dataset, host, hosts):
            outputs = judge.predict({}, {}, batch)
            state = judge.update(state, outputs, examples)
        states.append(state)
    return judge.merge(states)


def test_annotations_as_answers_are_found(dataset):
    judge = evaluator(perfect, dataset)
    metrics = judge.finish(folded(judge, dataset))
    assert metrics["images"] == 10
    assert metrics["box_AP50"] == metrics["mask_AP50"] == 100.0
    # Boxes of the canvas are rounded by its scale alone, masks by 28 samples.
    assert metrics["box_AP"] > 98 and metrics["mask_AP"] > 85
    assert metrics["box_AR1"] < metrics["box_AR100"]
    assert np.isnan(metrics["box_APl"])  # Of no object so large.
    assert list(metrics) == list(judge.finish(judge.start()))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_every_picture_once(dataset, hosts):
    def random(variables, frozen, batch):
        rng = np.random.default_rng(batch["index"].tolist())
        outputs = perfect(variables, frozen, batch)
        moved = outputs["boxes"] + rng.normal(0, 2, outputs["boxes"].shape)
        # Equal scores, so that the order of pictures decides.
        scores = rng.integers(1, 4, outputs["scores"].shape) / 4
        return outputs | {"boxes": moved.astype(np.float32), "scores": scores}

    def by_row(variables, frozen, batch):
        rows = []
        for row in range(len(batch["index"])):
            rows.append(random({}, {}, {k: v[row : row + 1] for k, v in batch.items()}))
        return {key: np.concatenate([r[key] for r in rows]) for key in rows[0]}

    judge = evaluator(by_row, dataset)
    alone = judge.finish(folded(judge, dataset))
    shared = judge.finish(folded(judge, dataset, hosts))
    np.testing.assert_equal(shared, alone)
    assert 0 < alone["box_AP"] < 90


def test_nothing_detected_is_zero(dataset):
    judge = evaluator(empty, dataset)
    state = folded(judge, dataset)
    metrics = judge.finish(state)
    for name in ("box_AP", "mask_AP", "box_AP50", "box_APs", "mask_AR100"):
        assert metrics[name] == 0.0
    [table] = judge.tables(state, ("a", "b", "c"))
    assert [row["box_AP"] for row in table.rows] == [0.0] * CLASSES


def test_nothing_to_be_found():
    """Without annotations there is nothing to judge: neither 0 nor -1."""
    example = dict(
        image_id=3, size=(4, 4), labels=[], boxes=[], areas=[], crowd=[], masks=[]
    )
    box = np.array([[0, 0, 2, 2]], np.float64)
    mask = run_lengths.encode(np.eye(4))
    answer = instances.Instances(np.array([1]), np.array([0.5]), box, [mask])
    judge = coco_ap.evaluator(perfect, list, CLASSES)
    state = judge.merge([judge.start(), coco_ap.as_state(example, answer)])
    metrics = judge.finish(state)
    assert metrics.pop("images") == 1 and np.isnan(list(metrics.values())).all()
    [table] = judge.tables(state, ())
    assert [row["mask_AP"] for row in table.rows] == [None] * CLASSES
    assert judge.tables(judge.start(), ()) == []
    assert any("–" in line for line in tables.lines([table]))


def crowded(count):
    """One picture with `count` objects, each found, the surest answer first."""
    boxes = np.array([[2 * i, 0, 2 * i + 2, 4] for i in range(count)], np.float64)
    masks = []
    for x1, y1, x2, y2 in boxes.astype(int):
        mask = np.zeros((4, 2 * count), np.uint8)
        mask[y1:y2, x1:x2] = 1
        masks.append(run_lengths.encode(mask))
    labels = np.zeros(count, np.int32)
    example = dict(
        image_id=1,
        size=(4, 2 * count),
        labels=labels,
        boxes=boxes,
        areas=np.full(count, 8.0),
        crowd=np.zeros(count, bool),
        masks=masks,
    )
    scores = np.linspace(0.9, 0.1, count)
    return coco_ap.as_state(example, instances.Instances(labels, scores, boxes, masks))


def test_more_than_a_hundred_detections_count_where_the_recipe_allows_them():
    state = crowded(110)
    hundred = coco_ap.evaluator(perfect, list, 1).finish(state)
    assert hundred["box_AR100"] == pytest.approx(100 * 100 / 110)
    assert hundred["box_AP"] < 95
    more = coco_ap.evaluator(perfect, list, 1, detections=120).finish(state)
    for name in ("box_AP", "mask_AP", "box_AR120", "mask_APs"):
        assert more[name] == pytest.approx(100)
    assert more["box_AR1"] == pytest.approx(100 / 110)
    # Fewer than 100 are judged as published.
    fewer = coco_ap.evaluator(perfect, list, 1, detections=20)
    assert list(fewer.finish(fewer.start())) == list(hundred)


def test_crowds_excuse_answers_and_are_not_counted():
    state = crowded(4)
    crowd = dict(state, truth_crowd=np.array([False, False, True, True]))
    judge = coco_ap.evaluator(perfect, list, 1)
    metrics = judge.finish(judge.merge([crowd]))
    assert metrics["box_AP"] == pytest.approx(100)
    [table] = judge.tables(crowd, ("cell",))
    assert table.rows[0]["count"] == 2 and table.rows[0]["name"] == "cell"
    # As ordinary answers two would be wrong.
    removed = dict(state)
    for key in ("image", "label", "box", "length"):
        removed[f"truth_{key}"] = state[f"truth_{key}"][2:]
    removed["truth_area"], removed["truth_crowd"] = (
        state[f"truth_{key}"][2:] for key in ("area", "crowd")
    )
    skipped = state["truth_length"][:2].sum()
    removed["truth_masks"] = state["truth_masks"][skipped:]
    assert judge.finish(removed)["box_AP"] < 60


def test_both_libraries_agree(dataset):
    pytest.importorskip("faster_coco_eval")

    def shaken(variables, frozen, batch):
        outputs = perfect(variables, frozen, batch)
        rng = np.random.default_rng(batch["index"].tolist())
        moved = outputs["boxes"] + rng.normal(0, 1, outputs["boxes"].shape)
        scores = rng.random(outputs["scores"].shape)
        return outputs | {"boxes": moved.astype(np.float32), "scores": scores}

    judges = [
        evaluator(shaken, dataset, library=name, detections=150)
        for name in coco_ap.LIBRARIES
    ]
    state = folded(judges[0], dataset)
    first, second = (judge.finish(state) for judge in judges)
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-9)
    assert 0 < first["mask_AP"] < 90


def test_a_library_that_is_not_there(monkeypatch, dataset):
    with pytest.raises(ValueError, match="library='fastest' is not known"):
        evaluator(perfect, dataset, library="fastest")
    for name, library, words in (
        ("pycocotools.coco", "pycocotools", r"takes pycocotools: .*\[detection\]"),
        ("faster_coco_eval", "faster", r"faster_coco_eval: .*\[faster-detection\]"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            judge = evaluator(perfect, dataset, library=library)
            with pytest.raises(ValueError, match=words):
                judge.finish(crowded(2))


def outputs(boxes, size, count=ROWS):
    """Answers with these boxes, full masks, and padding behind them."""
    real = len(boxes)
    padded = np.zeros((count, 4), np.float32)
    padded[:real] = boxes
    return {
        "boxes": padded,
        "scores": np.linspace(1, 0.5, count, dtype=np.float32),
        "labels": np.arange(count, dtype=np.int32),
        "valid": np.arange(count) < real,
        "masks": np.ones((count, 28, 28), np.float32),
        "size": np.array(size, np.int32),
    }


def test_answers_return_to_the_size_of_their_picture():
    boxes = [[2, 4, 10, 12], [-3, 0, 8, 40], [5, 5, 5, 9], [30, 30, 31, 31]]
    answer = instances.restore(outputs(boxes, (16, 24)), (32, 96))
    # Four times as wide, twice as high; clipped; what has no area is left out.
    assert answer.boxes.tolist() == [[8, 8, 40, 24], [0, 0, 32, 32]]
    assert answer.labels.tolist() == [0, 1]
    mask = run_lengths.decode(answer.masks[0])
    assert mask.shape == (32, 96)
    # A full mask fades beyond the middle of its outermost samples.
    inside = np.zeros((32, 96), bool)
    inside[8:24, 8:40] = True
    np.testing.assert_array_equal(mask.astype(bool), inside)
    assert [len(list(instances.rows({"a": np.zeros((3, 2))}, n))) for n in (0, 2)] == [
        0,
        2,
    ]


def test_a_mask_is_pasted_inside_its_window_as_inside_its_picture(rng):
    for _ in range(20):
        size = tuple(rng.integers(5, 40, 2).tolist())
        low, extent = rng.uniform(-3, 20, 2), rng.uniform(0.2, 30, 2)
        box = np.concatenate([low, low + extent]).astype(np.float32)
        box = np.clip(box, 0, np.float32([*size[::-1], *size[::-1]]))
        if (box[2:] <= box[:2]).any():
            continue
        mask = rng.random((28, 28)).astype(np.float32)
        pasted = instance_masks.paste(mask[None], box[None], size)[0] >= 0.5
        got = run_lengths.decode(instances.paste(mask, box, size))
        assert (got != pasted).mean() < 1e-3
