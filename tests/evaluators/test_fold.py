# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluators as folds: each example once, on one host, at its own size."""

import contextlib

import jax
import numpy as np
import pytest

from g2sd_jax import core, label_values, parallel, recipes
from g2sd_jax.data import geometry, order
from g2sd_jax.data.memory import fake
from g2sd_jax.evaluators import confusion, fold, top1

CLASSES, BATCH = 5, 8


class Silent:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.told = {}

    def write(self, step, scalars):
        self.told = scalars

    def paused(self):
        return contextlib.nullcontext()


def judged(evaluator) -> dict:
    """The loop's own evaluation, with nothing trained and nothing frozen."""
    mesh = parallel.make_mesh(recipes.load("pretrain").mesh)
    stage = core.Stage(None, None, None, evaluators={"eval": evaluator})
    listener = Silent()
    return fold.make_evaluate(stage, mesh, listener, listener)(0, {}, {})


def folded(evaluator, hosts: int, batches) -> dict:
    """The same fold by hand, over several hosts' states."""
    states = []
    for host in range(hosts):
        state = evaluator.start()
        for batch, examples in batches(host, hosts):
            outputs = jax.device_get(evaluator.predict({}, {}, batch))
            state = evaluator.update(state, outputs, examples)
        states.append(state)
    return evaluator.finish(evaluator.merge(states))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_top1_counts_every_example_once(hosts):
    dataset = fake.dataset(21, (8, 8), 3, CLASSES)  # The last batch is padded.

    def predict(variables, frozen, batch):
        # Right for even examples, second best for odd ones.
        best = jax.nn.one_hot(batch["label"], CLASSES)
        wrong = 2.0 * jax.nn.one_hot((batch["label"] + 1) % CLASSES, CLASSES)
        odd = (batch["index"] % 2 == 1)[:, None]
        return {"logits": best + jax.numpy.where(odd, wrong, 0.0)}

    def batches(host=0, hosts=1):
        return order.eval_batches(dataset, BATCH, host, hosts)

    evaluator = top1.top1(predict, batches, CLASSES)
    found = folded(evaluator, hosts, batches)
    assert found["top1"] == pytest.approx(100 * 11 / 21)
    assert (found["top5"], found["count"]) == (100.0, 21)
    if hosts == 1:
        expected = {f"eval/{name}": value for name, value in found.items()}
        assert judged(evaluator) == expected


def test_answers_are_chosen_among_the_classes_that_occur():
    """As ImageNet-A and -R are scored: 200 of a model's 1000 outputs count."""
    evaluator = top1.top1(None, None, 8)
    logits = np.array([[9.0, 1, 3, 2, 0, 8, 7, 6], [9.0, 5, 3, 2, 4, 8, 7, 6]])
    told = [{"label": 2}, {"label": 3}]
    state = evaluator.update(evaluator.start(), {"logits": logits}, told)
    assert evaluator.finish(state) == {"top1": 0.0, "top5": 50.0, "count": 2}
    told = [{**one, "among": np.array([1, 2, 3])} for one in told]
    state = evaluator.update(evaluator.start(), {"logits": logits}, told)
    assert evaluator.finish(state) == {"top1": 50.0, "top5": 100.0, "count": 2}


@pytest.mark.parametrize("hosts", [1, 2])
def test_confusion_on_label_maps_of_mixed_sizes(hosts):
    dataset = fake.dataset(11, (16, 16), 3, CLASSES, reads=("label_map",))
    truths = [dataset.original(i)["label_map"] for i in range(11)]
    assert len({truth.shape for truth in truths}) > 1

    def predict(variables, frozen, batch):
        return {"label_map": batch["image"][..., 0] % CLASSES}

    def answers(outputs, examples):
        for predicted, example in zip(outputs["label_map"], examples, strict=False):
            truth = example["label_map"]
            yield geometry.resize_labels(np.asarray(predicted), truth.shape), truth

    def batches(host=0, hosts=1):
        return order.eval_batches(dataset, BATCH, host, hosts)

    evaluator = confusion.evaluator(predict, batches, CLASSES, answers)
    found = folded(evaluator, hosts, batches)
    pixels = sum(int((truth != label_values.IGNORED).sum()) for truth in truths)
    state = evaluator.start()
    for batch, examples in batches():
        state = evaluator.update(state, predict({}, {}, batch), examples)
    assert state["confusion"].sum() == pixels
    assert found == {**confusion.scores(state["confusion"]), "pixels": pixels}
    if hosts == 1:
        assert judged(evaluator)["eval/mIoU"] == found["mIoU"]


def test_confusion_scores_by_hand():
    truth = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)
    counted = confusion.count_pixels(predicted, truth, 4)
    assert counted.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0] * 4]
    found = confusion.scores(counted)  # IoU 1/2, 2/4, 0/1; the fourth never occurs.
    assert found["mIoU"] == pytest.approx(100 / 3)
    assert found["mAcc"] == pytest.approx(50.0)
    assert found["aAcc"] == pytest.approx(60.0)


def test_states_of_hosts_travel_whole():
    state = dict(counts=np.arange(6).reshape(2, 3), bytes=np.zeros(5, np.uint8))
    (only,) = parallel.gather_states(state)
    assert only.keys() == state.keys()
    np.testing.assert_array_equal(only["counts"], state["counts"])


def test_a_class_is_counted_whatever_its_number():
    """255 is what a label map ignores; of a thousand classes it is one."""
    label = np.array([255, 255, 3])
    logits = np.eye(300)[[255, 3, 3]]
    evaluator = top1.top1(None, None, 300)
    examples = [dict(label=each) for each in label]
    state = evaluator.update(evaluator.start(), dict(logits=logits), examples)
    state = evaluator.merge([state, evaluator.start()])
    classes, matrix = evaluator.tables(state, [f"n{i}" for i in range(300)])
    counts = np.array(matrix.rows)
    assert counts.sum() == 3
    assert (counts[255, 255], counts[255, 3], counts[3, 3]) == (1, 1, 1)
    rows = classes.rows
    assert (rows[255]["recall"], rows[255]["precision"]) == (50, 100)
    assert rows[255]["mistaken_for"] == ["n3", 1]
    assert (rows[3]["recall"], rows[3]["precision"], rows[3]["iou"]) == (100, 50, 50)
    assert (rows[7]["count"], rows[7]["recall"]) == (0, None)
