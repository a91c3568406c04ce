# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection beyond the goldens: hard pictures, groups, precision, weights, mistakes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import coco_files
import runs
import tiny
from coco_files import CATEGORIES
from g2sd_jax import parallel, recipes, stages, step
from g2sd_jax.data import source
from g2sd_jax.models import vitdet
from g2sd_jax.tasks import detection
from g2sd_jax.weights import loading, torch_names

FINETUNE = "finetune:task=detection"


@pytest.fixture(scope="module")
def small():
    return Small()


class Small:
    """A tiny detector, and its loss of four pictures with its gradient, compiled."""

    def __init__(self):
        self.config, self.stage, variables = tiny.stage(FINETUNE, batch=4)
        self.params = variables["params"]
        dataset = source.load(self.config, "train", self.stage.reads)
        self.batch = jax.tree.map(np.array, dataset.fetch(np.arange(4)))
        self.draws = self.stage.draw(jax.random.key(3), self.batch)
        loss = lambda *args: self.stage.loss(args[0], {}, {}, *args[1:], 0)
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def metrics(self, **changes):
        """Named losses and the gradient of the batch with other objects."""
        batch = self.batch | changes
        (_, (_, metrics)), grads = self.gradient(self.params, batch, self.draws)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        assert np.isfinite(list(metrics.values())).all(), metrics
        return metrics, grads


def test_pictures_without_objects_have_finite_losses(small):
    none = np.zeros_like(small.batch["valid_boxes"])
    metrics, grads = small.metrics(valid_boxes=none)
    for name in ("rpn_boxes", "boxes", "masks"):
        assert metrics[f"loss/{name}"] == 0.0
    assert metrics["loss/rpn_objectness"] > 0 and metrics["loss/classes"] > 0
    assert not any(map(np.any, jax.tree.leaves(grads["roi_heads"]["mask_head"])))
    # What lies in rows that are not valid is nothing to anyone.
    rubbish = dict(boxes=np.full_like(small.batch["boxes"], 7.0), labels=none * 0 + 99)
    again, _ = small.metrics(valid_boxes=none, **rubbish)
    assert again["loss"] == metrics["loss"]


@pytest.mark.parametrize(
    "box",
    [(9, 7, 10, 8), (0, 0, 64, 64), (63, 63, 64, 64), (0, 31, 64, 31.01)],
    ids=["pixel", "canvas", "corner", "sliver"],
)
def test_objects_of_any_size_have_finite_losses(small, box):
    boxes = np.broadcast_to(np.float32(box), small.batch["boxes"].shape)
    valid = np.ones_like(small.batch["valid_boxes"])
    metrics, _ = small.metrics(boxes=boxes, frames=boxes, valid_boxes=valid)
    assert metrics["loss/rpn_boxes"] > 0  # It has an anchor.


def test_an_image_that_is_all_padding_is_finite(small):
    small.metrics(size=np.zeros_like(small.batch["size"]))


def test_hard_pictures_of_a_json_have_finite_losses(small, tmp_path):
    """Crowds alone, more objects than a batch holds, a pixel, the canvas, none left."""
    size, boxes = coco_files.SIZE, {}
    most = small.config.data.max_boxes
    boxes["crowds"] = [(0, 0, 30, 30)] * 2
    boxes["many"] = [(8 * i, 5, 6, 9) for i in range(most + 2)]
    boxes["pixel"] = [(29, 23, 1, 1)]  # In the middle, where every crop has it.
    boxes["canvas"] = [(0, 0, *size[::-1])]
    boxes["cropped"] = [(0, 0, 2, 2)]  # Unless the crop begins at its corner.
    lists = dict(images=[], annotations=[], categories=[])
    lists["categories"] = [dict(id=key, name=name) for key, name in CATEGORIES]
    for number, (name, objects) in enumerate(boxes.items(), start=1):
        image = dict(id=number, file_name=f"{name}.jpg", height=size[0], width=size[1])
        lists["images"].append(image)
        for box in objects:
            crowd = dict(iscrowd=int(name == "crowds"))
            crowd["segmentation"] = coco_files.as_json(coco_files.bitmap(box))
            row = coco_files.annotation(len(lists["annotations"]), number, box, **crowd)
            lists["annotations"].append(row)
    keys = dict(surplus="sample", max_boxes=most, train_examples=4)
    keys |= {"mask_size": small.config.data.mask_size, "augment.scale": (1.9, 2.0)}
    config = coco_files.recipe(coco_files.write(tmp_path, lists), **keys)
    dataset = source.load(config, "train", small.stage.reads)
    assert dataset.count == 4  # Nobody learns from crowds.
    batch = dataset.fetch(np.arange(4), 0)
    assert batch["valid_boxes"].sum(axis=1).tolist() == [most, 1, 1, 0]
    small.metrics(**{key: batch[key] for key in small.batch})


def test_groups_are_normalised_alone(small):
    """The loss of two groups is the mean of theirs, whatever they are beside."""
    assert small.config.loss.group == 2
    together, _ = small.metrics()
    parts = []
    for rows in ([0, 1, 0, 1], [2, 3, 2, 3]):
        take = lambda x, rows=rows: np.asarray(x)[rows]
        batch, draws = jax.tree.map(take, (small.batch, small.draws))
        (loss, _), _ = small.gradient(small.params, batch, draws)
        parts.append(float(loss))
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)
    np.testing.assert_allclose(together["loss"], np.mean(parts), rtol=1e-5)


def test_micro_batches_keep_groups_together():
    for parts, group in ((2, 2), (3, 4), (1, 8)):
        rows = step.split_batch(np.arange(24), parts, group)
        assert rows.shape == (parts, 24 // parts)
        for row in rows.reshape(-1, group):
            assert row[0] % group == 0
            np.testing.assert_array_equal(np.diff(row), 1)
        np.testing.assert_array_equal(np.sort(rows.ravel()), np.arange(24))


def test_groups_that_micro_batches_would_divide_are_refused():
    config = runs.small(FINETUNE, batch=16, accumulate=2)
    config.loss.group = 16
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    words = r"config\.batch=16 in config\.accumulate=2 parts of 8.*config\.loss\.group"
    with pytest.raises(ValueError, match=words):
        step.build(config, stages.build(config), mesh)


def test_boxes_and_logits_are_float32_in_bfloat16():
    config = runs.small(FINETUNE, batch=2, compute_dtype="bfloat16")
    task = detection.build(config)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    dataset = source.load(config, "train", task.reads)
    batch = dataset.fetch(np.arange(2))

    def run(variables, batch):
        draws = task.draw(jax.random.key(0), batch)
        batch = task.augment(batch, draws)
        outputs, _ = task.forward(variables, batch, draws)
        predicted = task.evaluators["eval"].predict(variables, {}, batch)
        return outputs, predicted, task.terms(outputs, batch)

    outputs, predicted, terms = jax.eval_shape(run, variables, batch)
    assert {x.dtype for x in outputs.maps} == {jnp.dtype(jnp.bfloat16)}
    exact = (
        outputs.logits,
        outputs.deltas,
        outputs.regions.boxes,
        outputs.class_logits,
        outputs.box_deltas,
        outputs.mask_logits,
        predicted["boxes"],
        predicted["scores"],
        predicted["masks"],
        terms,
    )
    assert {x.dtype for x in jax.tree.leaves(exact)} == {jnp.dtype("float32")}


def test_shipped_recipes_are_the_published():
    for recipe, wd, decay in (
        (f"{FINETUNE},model=b16", 0.1, 0.7),
        (f"{FINETUNE},model=s16", 0.1, 0.7),
        ("specific_det:student=ti16", 0.05, 1.0),
    ):
        config = recipes.load(recipe)
        optim = config.optim
        assert (config.batch, config.total_steps, config.loss.group) == (64, 184_375, 8)
        assert (optim.lr, optim.wd, optim.layer_decay) == (1e-4, wd, decay)
        assert (config.model.drop_path, config.data.mask_size) == (0.1, 112)
    assert config.teacher.model.drop_path == 0.0
    weights = config.distill
    assert (weights.feature, weights.objectness) == (0.001, 0.1)
    assert weights.warmup_steps == 500


# Weights.


def test_blocks_of_a_period_keep_their_numbers():
    for kinds, length in (
        ((3, 3, 0) * 4, 3),
        ((3, 0) * 2, 2),
        ((3,) * 4, 1),
        ((3, 0, 0, 3, 0), 5),
    ):
        assert vitdet.pattern(kinds) == kinds[:length]
        globals_ = tuple(i for i, kind in enumerate(kinds) if not kind)
        net = vitdet.Net(
            width=4,
            depth=len(kinds),
            heads=1,
            patch=4,
            image_size=(16, 16),
            pretrain_grid=(2, 2),
            window=3,
            global_blocks=globals_,
        )
        init = functools.partial(net.init, image=jnp.zeros((1, 16, 16, 3)))
        shapes = torch_names.shapes(jax.eval_shape(init, jax.random.key(0)))
        for i, kind in enumerate(kinds):
            rows = 2 * (kind or 4) - 1
            assert shapes[f"blocks.{i}.attn.rel_pos_h"] == (rows, 4)


def test_numbers_survive_the_way_to_torch_and_back(small):
    arrays = torch_names.to_torch(small.params)
    back = torch_names.from_torch(small.params, arrays)
    jax.tree.map(np.testing.assert_array_equal, back, small.params)


def saved(folder, arrays, describe):
    path = str(folder / "weights.safetensors")
    meta = {"g2sd_jax": json.dumps(describe)}
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(x) for name, x in arrays.items()}, path, meta
    )
    return path


def test_an_encoder_becomes_a_backbone(tmp_path):
    """A class token is dropped, a table of another grid resized, heads are fresh."""
    config = runs.small("pretrain")
    config.model.update(dict(patch=16, image_size=(64, 64)))
    stage = stages.build(config)
    variables = tiny.noisy(jax.device_get(jax.jit(stage.init)(jax.random.key(0))))
    arrays = torch_names.to_torch(variables, (4, 4))
    path = saved(tmp_path, arrays, dict(grid=(4, 4)))
    target = runs.small(FINETUNE, init_from=path)
    stage = stages.build(target)
    started = stage.warm_start(jax.jit(stage.init)(jax.random.key(0)))
    got = torch_names.to_torch(started)
    for name in ("blocks.1.attn.qkv.weight", "patch_embed.proj.bias"):
        np.testing.assert_array_equal(got[f"backbone.net.{name}"], arrays[name])
    assert got["backbone.net.pos_embed"].shape == (1, 1 + 2 * 2, 16)
    assert not got["backbone.net.blocks.0.attn.rel_pos_h"].any()


def test_a_detector_of_other_classes_keeps_all_but_its_class_layers(small, tmp_path):
    path = saved(tmp_path, torch_names.to_torch(small.params), {})
    config = runs.small(FINETUNE, init_from=path)
    config.data.classes = 3
    stage = stages.build(config)
    fresh = jax.jit(stage.init)(jax.random.key(0))
    got = torch_names.to_torch(stage.warm_start(fresh))
    before, theirs = torch_names.to_torch(fresh), torch_names.to_torch(small.params)
    changed = "roi_heads.box_predictor.", "roi_heads.mask_head.predictor."
    for name, array in got.items():
        wanted = before if name.startswith(changed) else theirs
        np.testing.assert_array_equal(array, wanted[name], name)


def test_a_file_without_class_token_says_its_width(small):
    weights = loading.Weights("a file", torch_names.to_torch(small.params), {})
    summary = weights.summary()
    assert summary.startswith("an encoder of 2 blocks, width 16, no decoder")
    assert "a detection head of 5 classes" in summary


# Distillation.


def test_a_teacher_of_other_channels_or_canvas_is_refused():
    for key, value, words in (
        ("model.adapter", 7, r"config\.model\.adapter=7, but the teacher's maps have"),
        ("teacher.model.image_size", (96, 96), "use the same canvas"),
        ("teacher.model.anchor_sizes", (1, 2, 3, 4, 5), "anchor by anchor"),
    ):
        config = runs.small("specific_det")
        with config.unlocked():
            config.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match=words):
            stages.build(config)


def test_an_encoder_is_no_teacher(tmp_path):
    path = saved(tmp_path, {"patch_embed.proj.weight": np.zeros((8, 3, 4, 4))}, {})
    config = runs.small("specific_det")
    config.teacher.checkpoint = path
    with pytest.raises(ValueError, match="needs a trained detector"):
        stages.build(config).frozen()
