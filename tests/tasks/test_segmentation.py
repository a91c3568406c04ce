# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation beyond the goldens: sizes, losses, windows, weights, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import files
import finished_runs
import runs
import tiny
from g2sd_jax import checkpoint, open_keys, parallel, recipes, stages, step, tasks
from g2sd_jax.data import geometry, order
from g2sd_jax.data.memory import fake
from g2sd_jax.evaluators import confusion, fold, sliding
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import upernet
from g2sd_jax.ops import label_maps, photometric
from g2sd_jax.tasks import segmentation
from g2sd_jax.weights import loading, segmentor_names, torch_names

FINETUNE = "finetune:task=segmentation"


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("recipe", "total"),
    [
        (f"{FINETUNE},model=ti16", 11_028_284),
        (f"{FINETUNE},model=s16", 41_997_644),
        (f"{FINETUNE},model=b16", 163_877_228),
        (f"{FINETUNE},model=l16", 441_472_812),
        ("specific_seg:student=ti16", 11_028_284),
    ],
)
def test_parameter_counts_are_the_published(recipe, total):
    stage = stages.build(open_keys.assume(recipes.load(recipe)))
    variables = jax.eval_shape(stage.init, jax.random.key(0))
    assert count(variables["params"]) == total


def test_shipped_recipes_are_the_published():
    for recipe in (FINETUNE, "specific_seg:student=s16"):
        config = open_keys.assume(recipes.load(recipe))
        stages.complete(config)
        model, optim = config.model, config.optim
        assert (config.batch, config.total_steps, config.data.classes) == (
            16,
            160_000,
            150,
        )
        assert (optim.lr, optim.wd, optim.layer_decay) == (1e-4, 0.05, 0.65)
        assert (optim.schedule, optim.power, optim.clip) == ("poly", 1.0, 0.0)
        assert round(optim.warmup_epochs * step.count_steps(config)[0]) == 1500
        assert (model.drop_path, model.dropout, model.aux_width) == (0.1, 0.1, 256)
        assert config.loss.auxiliary == 0.4 and config.loss.divisor == "all"
    assert (config.distill.weight, config.distill.temperature) == (3.0, 1.0)
    assert recipes.load("specific_seg:loss=kl").distill.weight == 10.0
    config = recipes.load(f"{FINETUNE},model=l16")
    stages.complete(config)
    assert (config.optim.lr, config.optim.layer_decay) == (2e-5, 0.95)
    assert config.model.taps == (7, 11, 15, 23) and config.model.drop_path == 0.2


def test_what_no_key_says_follows_from_the_sizes():
    small = dict(size="custom", width=64, heads=2, patch=8, image_size=(96, 128))
    changes = {"model": small | {"depth": 8}, "data.classes": 5}
    config = recipes.load(FINETUNE, changes | {"inference.stride": (7, 9)})
    stages.complete(config)
    assert (config.model.taps, config.model.aux_width) == ((2, 3, 4, 7), 64)
    assert config.augment.fit == config.inference.fit == (96, 384)
    assert config.inference.stride == (7, 9)  # What is set stays.
    config = recipes.load("specific_seg")
    stages.complete(config)
    published = dict(fit=(512, 2048), stride=(341, 341))
    assert {key: config.inference[key] for key in published} == published
    assert config.teacher.model.taps == config.model.taps == (3, 5, 7, 11)
    assert "aux_width" not in config.teacher.model


# Losses.


def test_pixel_loss_by_hand():
    logits = jnp.log(jnp.array([[[[1.0, 3.0], [1.0, 1.0]]]]))  # 1 x 2 pixels.
    label_map = np.array([[[1, 255]]], np.uint8)
    expected = -np.log(0.75)
    for divisor, pixels in (("all", 2), ("valid", 1)):
        got = cross_entropy.pixels(logits, label_map, divisor=divisor)
        assert got == pytest.approx(expected / pixels, rel=1e-6)
    assert cross_entropy.pixel_accuracy(logits, label_map) == 0.5


@pytest.mark.parametrize("divisor", cross_entropy.DIVISORS)
def test_all_ignored_stays_finite(divisor, rng):
    logits = jnp.asarray(rng.normal(size=(2, 3, 3, 5)), jnp.float32)
    label_map = np.full((2, 6, 6), 255, np.uint8)
    loss = lambda x: cross_entropy.pixels(x, label_map, divisor=divisor)
    value, grad = jax.value_and_grad(loss)(logits)
    assert value == 0 and not grad.any()


def test_labels_beyond_the_last_class_stop_the_run(rng):
    logits = jnp.asarray(rng.normal(size=(1, 2, 2, 5)), jnp.float32)
    label_map = np.array([[[0, 4], [255, 5]]], np.uint8)
    assert np.isnan(cross_entropy.pixels(logits, label_map))
    label_map[0, 1, 1] = 4
    assert np.isfinite(cross_entropy.pixels(logits, label_map))
    with pytest.raises(ValueError, match=r"class 5, but config\.data\.classes=5"):
        confusion.count_pixels(np.zeros(1, int), np.array([5]), 5)


def test_distillation_into_itself_has_no_gradient(rng):
    logits = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    for loss in (distill.channel_wise, distill.class_wise):
        value = lambda s, loss=loss: loss(s, logits, temperature=2.0)
        assert np.abs(jax.grad(value)(logits)).max() < 1e-6
    assert distill.class_wise(logits, logits, temperature=1.0) == pytest.approx(0)
    # Uniform maps of 12 positions: the least of the channel-wise one is their entropy.
    flat = jnp.zeros_like(logits)
    least = distill.channel_wise(flat, flat, temperature=1.0)
    assert least == pytest.approx(np.log(12), rel=1e-5)


# What the device does to pictures.


def test_neutral_colours_and_no_flip_change_nothing(rng):
    image = rng.integers(0, 256, (3, 5, 7, 3)).astype(np.float32)
    off = photometric.draw(jax.random.key(0), 3, 0.0)
    np.testing.assert_array_equal(photometric.apply(image, off), image)
    drawn = photometric.draw(jax.random.key(0), 4000, 0.5)
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 17),
    ):
        assert low <= drawn[name].min() < drawn[name].max() <= high, name
    assert set(np.unique(drawn["hue"])) == set(range(-18, 18))
    for name, neutral in (("brightness", 0), ("contrast", 1)):
        assert abs((drawn[name] == neutral).mean() - 0.5) < 0.03
    for name in ("saturate", "shift_hue", "contrast_first"):
        assert abs(drawn[name].mean() - 0.5) < 0.03


def test_pictures_are_mirrored_within_their_own_width(rng):
    image = rng.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    label_map = rng.integers(0, 5, (2, 4, 6)).astype(np.uint8)
    size = np.array([[4, 6], [3, 4]], np.int32)
    spec = label_maps.Spec((0.5,), (0.5,))
    batch = {"image": image, "label_map": label_map, "image_size": size}
    draws = {"flip": jnp.array([False, True])}
    got = label_maps.prepare(batch, draws, spec)
    plain = lambda x: x.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(got["image"][0], plain(image[0]), atol=1e-6)
    mirrored = plain(image[1, :3, 3::-1])
    np.testing.assert_allclose(got["image"][1, :3, :4], mirrored, atol=1e-6)
    assert not got["image"][1, 3:].any() and not got["image"][1, :, 4:].any()
    np.testing.assert_array_equal(got["label_map"][1, :, :4], label_map[1, :, 3::-1])
    whole = label_maps.prepare(
        {"image": image}, {"flip": jnp.array([True, True])}, spec
    )
    np.testing.assert_allclose(whole["image"], plain(image[:, :, ::-1]), atol=1e-6)


# Inference.


@pytest.mark.parametrize(
    ("size", "expected"),
    [(512, [0]), (300, [0]), (513, [0, 1]), (853, [0, 341]), (854, [0, 341, 342])],
)
def test_windows_start_inside(size, expected):
    assert sliding.starts(size, 512, 341) == expected


def test_merging_windows_of_one_function_is_that_function():
    """Every window shows the same straight line, so its mean is the line."""
    matrix = sliding.merging(150, 64, 43, 16)
    begins = sliding.starts(150, 64, 43)
    low = [begin + 4 * np.arange(16) + 1.5 for begin in begins]
    got = matrix @ np.concatenate(low)
    inner = slice(2, -2)  # Beyond the outermost centres the line is flat.
    inside = [
        all(begin + 2 <= x < begin + 62 for begin in begins if begin <= x < begin + 64)
        for x in range(150)
    ]
    np.testing.assert_allclose(got[inside], np.arange(150)[inside], atol=1e-9)
    assert got[inner].size and np.all(np.diff(got) >= 0)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


class Coloured:
    """A network that answers with the colour of every fourth pixel."""

    classes = 6

    def __init__(self):
        self.shapes = set()

    def predict(self, variables, frozen, batch):
        image = batch["image"]
        self.shapes.add(tuple(image.shape))
        label = image[:, 2::4, 2::4, 0].astype(jnp.int32)
        return {"logits": jax.nn.one_hot(label, self.classes)}


LOOKS = {"scales": (0.5, 1.0, 1.75), "flip": True}


@pytest.mark.parametrize("mode", sliding.MODES)
@pytest.mark.parametrize("hosts", [1, 3])
def test_pictures_of_mixed_sizes_need_one_program(mode, hosts, rng):
    network = Coloured()
    plan = sliding.Plan(mode, (64, 64), (43, 43), (64, 256))
    sizes = [(64, 64), (100, 64), (64, 250), (40, 90), (130, 70), (31, 33), (64, 300)]
    examples = []
    for size in sizes:
        truth = np.full(size, rng.integers(6), np.uint8)
        truth[:, : size[1] // 2] = rng.integers(6)
        image = np.repeat(truth[..., None], 3, axis=2)
        examples.append({"image": image, "label_map": truth})
    predict = jax.jit(lambda batch: network.predict({}, {}, batch))
    alone = np.zeros((6, 6), np.int64)
    for example in examples:
        scene = sliding.Scene(example, plan)
        for at, window in scene.windows.items():
            last = scene.add(
                at, predict(sliding.padded([window], 4, plan, 3))["logits"][0]
            )
        assert last
        alone += confusion.count_pixels(scene.answer(), example["label_map"], 6)

    evaluator = confusion.evaluator(None, None, 6, segmentation.answered_label_maps)
    states = []
    for host in range(hosts):
        state = evaluator.start()
        scenes = [sliding.Scene(example, plan) for example in examples[host::hosts]]
        windows = [(scene, at) for scene in scenes for at in scene.windows]
        for first in range(0, len(windows), 4):  # Some scenes span two batches.
            held = windows[first : first + 4]
            pixels = [scene.windows[at] for scene, at in held]
            outputs = jax.device_get(predict(sliding.padded(pixels, 4, plan, 3)))
            state = evaluator.update(state, outputs, held)
        states.append(state)
    merged = evaluator.merge(states)
    np.testing.assert_array_equal(merged["confusion"], alone)
    assert merged["confusion"].sum() == sum(h * w for h, w in sizes)
    assert network.shapes == {(4, 64, 64, 3)}
    assert evaluator.finish(merged)["aAcc"] > 90  # Small ones were enlarged.


def test_many_looks_compile_what_one_does(student):
    """Through the real network and evaluator, pictures of five sizes."""
    config, _, variables = student
    config = config.copy_and_resolve_references()
    config.data.limit = 5
    mesh, counts, windows = parallel.make_mesh(config.mesh), [], []
    held_out = fake.load(config, config.data.eval_split, segmentation.READS)
    assert len({held_out.original(i)["image"].shape for i in range(5)}) == 5
    for looks in ({}, LOOKS):
        config.inference.update(looks)
        evaluator = stages.build(config).evaluators["eval"]
        predict = fold.compile_predict(evaluator, mesh)
        state = fold.fold(evaluator, predict, mesh, variables, {})
        assert predict._cache_size() == 1
        counts.append(state["confusion"])
        windows.append(
            sum(int(batch["valid"].sum()) for batch, _ in evaluator.batches())
        )
    assert counts[0].sum() == counts[1].sum() and (counts[0] != counts[1]).any()
    assert windows[1] > 6 * windows[0]  # The largest look alone has more than twice.


def test_looks_are_averaged_as_probabilities(rng):
    """Against the same by hand, for a network that sees what is mirrored."""
    weights = rng.normal(size=(16, 16, 3, 4)) * 4  # By place: no look is like another.

    def network(image):  # [h, w, 3] of at most a window -> [16, 16, C]
        canvas = np.zeros((64, 64, 3))
        canvas[: image.shape[0], : image.shape[1]] = image / 255 - 0.5
        return np.einsum("hwc,hwcl->hwl", canvas[::4, ::4], weights)

    plan = sliding.Plan("slide", (64, 64), (43, 43), (40, 256), (0.75, 1.5), True)
    size = (48, 45)  # One window even where it is largest.
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    scene = sliding.Scene({"image": image}, plan)
    for at, window in scene.windows.items():
        last = scene.add(at, network(window))
    assert last and len(scene.windows) == 4
    total = 0
    for scale in (0.75, 1.5):
        own = geometry.fit_size(size, (int(40 * scale), 1000))
        seen = geometry.resize_image(image, own)
        for mirrored in (False, True):
            logits = network(seen[:, ::-1] if mirrored else seen)
            bilinear = lambda x, to: jax.image.resize(
                x, (*to, 4), "linear", antialias=False
            )
            logits = bilinear(bilinear(logits, (64, 64))[: own[0], : own[1]], size)
            likely = jax.nn.softmax(logits)
            total += likely[:, ::-1] if mirrored else likely
    want = np.asarray(total).argmax(-1)
    assert scene.truth is None
    np.testing.assert_array_equal(scene.answer(), want)
    alone = sliding.Scene({"image": image}, plan._replace(scales=(1.5,), flip=False))
    for at, window in alone.windows.items():
        alone.add(at, network(window))
    assert (alone.answer() != want).mean() > 0.1


def test_a_whole_picture_is_one_window():
    plan = sliding.Plan("whole", (64, 96), (1, 1), (1, 1))
    for size in ((64, 96), (500, 300), (20, 400)):
        height, width = sliding.fitted(size, plan)
        assert height <= 64 and width <= 96 and (height == 64 or width == 96)
    assert geometry.fit_size((300, 500), (512, 2048)) == (512, 853)
    assert geometry.fit_size((3, 9000), (512, 2048)) == (1, 2048)


# Weights.


@pytest.fixture(scope="module")
def student():
    return tiny.stage(FINETUNE)


def test_names_are_those_of_published_checkpoints(student):
    arrays = torch_names.to_torch(student[2])
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["backbone.blocks.1.attn.relative_position_bias_table"] == (52, 2)
    assert shapes["backbone.blocks.0.gamma_2"] == (16,)
    assert shapes["backbone.fpn1.3.weight"] == (16, 16, 2, 2)
    assert shapes["backbone.fpn1.1.running_var"] == (16,)
    assert shapes["decode_head.psp_modules.3.1.conv.weight"] == (8, 16, 1, 1)
    assert shapes["decode_head.bottleneck.conv.weight"] == (8, 16 + 4 * 8, 3, 3)
    assert shapes["decode_head.fpn_bottleneck.bn.running_mean"] == (8,)
    assert shapes["auxiliary_head.convs.0.conv.weight"] == (8, 16, 3, 3)
    assert shapes["auxiliary_head.conv_seg.bias"] == (5,)
    kernel = student[2]["params"]["backbone"]["fpn2.0"]["kernel"]  # Row, column, out.
    weight = arrays["backbone.fpn2.0.weight"]
    np.testing.assert_array_equal(weight[3, 5, 0, 1], kernel[0, 1, 5, 3])


def save(path, arrays):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, path)
    return str(path)


def started(path, **changes):
    config = runs.small(FINETUNE, init_from=path, **changes)
    stage = stages.build(config)
    fresh = jax.jit(stage.init)(jax.random.key(7))
    got = stage.warm_start(jax.device_get(fresh))
    return (torch_names.to_torch(tree) for tree in (fresh, got))


def test_a_pretrained_encoder_becomes_the_backbone(tmp_path):
    keys = runs.SMALL | runs.DECODER | dict(patch=16, image_size=(96, 96))
    config = recipes.load("pretrain:smoke", {"model": keys})
    mae = stages.build(config)
    params = jax.jit(mae.init)(jax.random.key(1))["params"]
    arrays = torch_names.to_torch(params, (6, 6))
    fresh, got = started(save(tmp_path / "mae.safetensors", arrays))
    np.testing.assert_array_equal(
        got["backbone.blocks.1.mlp.fc1.bias"], arrays["blocks.1.mlp.fc1.bias"]
    )
    assert got["backbone.pos_embed"].shape == (1, 17, 16)
    np.testing.assert_array_equal(
        got["backbone.pos_embed"][:, 0], arrays["pos_embed"][:, 0]
    )
    for name in ("decode_head.conv_seg.weight", "backbone.fpn2.0.weight"):
        np.testing.assert_array_equal(got[name], fresh[name])
    assert (got["backbone.blocks.0.gamma_1"] == 1).all()


def test_a_segmentor_is_taken_whole_and_strictly(student, tmp_path):
    arrays = torch_names.to_torch(tiny.noisy(student[2], seed=3))
    _, got = started(save(tmp_path / "plain.safetensors", arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
    both = {f"student.{name}": array for name, array in arrays.items()}
    both |= {f"teacher.{name}": 0 * array for name, array in arrays.items()}
    both["student_decode_head_conv_seg"] = np.zeros((1, 5, 4, 4), np.float32)
    path_of_both = save(tmp_path / "both.safetensors", both)
    _, got = started(path_of_both)
    np.testing.assert_array_equal(
        got["decode_head.conv_seg.bias"], arrays["decode_head.conv_seg.bias"]
    )
    config = runs.small(FINETUNE, init_from=path_of_both)
    config.loss.auxiliary = 0.0  # No such head; the file's is left behind.
    stage = stages.build(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    assert "auxiliary_head" not in stage.warm_start(shapes)["params"]
    del arrays["decode_head.bottleneck.bn.running_var"]
    path = save(tmp_path / "part.safetensors", arrays)
    with pytest.raises(ValueError, match=r"missing: decode_head\.bottleneck.*var"):
        started(path)


def test_an_index_of_another_order_is_refused(student, tmp_path):
    arrays = torch_names.to_torch(student[2])
    name = "backbone.blocks.0.attn.relative_position_index"
    index = np.zeros((17, 17), np.float32)
    path = save(tmp_path / "other.safetensors", {**arrays, name: index})
    with pytest.raises(ValueError, match=r"relative_position_index .* 4x4 grid"):
        started(path)


def test_one_shared_table_and_a_patch_of_14():
    rng = np.random.default_rng(0)
    arrays = {
        "blocks.0.norm1.bias": np.zeros(4),
        "blocks.1.norm1.bias": np.zeros(4),
        "rel_pos_bias.relative_position_bias_table": rng.normal(size=(12, 2)),
        "patch_embed.proj.weight": np.ones((4, 3, 14, 14), np.float32),
        "norm.bias": np.zeros(4),
    }
    got = segmentor_names.rename(arrays, "student", 16)
    for block in (0, 1):
        table = got[f"backbone.blocks.{block}.attn.relative_position_bias_table"]
        assert table is arrays["rel_pos_bias.relative_position_bias_table"]
    kernel = got["backbone.patch_embed.proj.weight"]
    assert kernel.shape == (4, 3, 16, 16)
    np.testing.assert_allclose(kernel, 1, atol=1e-6)
    assert "norm.bias" in got and "backbone.rel_pos_bias" not in " ".join(got)
    kernel = segmentor_names.rename(arrays, "student", 8)[
        "backbone.patch_embed.proj.weight"
    ]
    assert kernel.shape == (4, 3, 14, 14)


def test_a_teacher_needs_its_head(tmp_path, student):
    arrays = torch_names.to_torch(student[2])
    arrays = {n: a for n, a in arrays.items() if n.startswith("backbone.")}
    path = save(tmp_path / "encoder.safetensors", arrays)
    config = runs.small("specific_seg")
    config.teacher.checkpoint = path
    with pytest.raises(ValueError, match="needs a fine-tuned segmentor"):
        stages.build(config).frozen()


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    """By its number of classes, and by their names where data and teacher have some."""
    model = dict(width=24, depth=3, taps=(0, 1, 1, 2))
    names = ("sky", "road", "car", "tree", "pole")
    path, *_ = finished_runs.workdir(tmp_path, FINETUNE, model, class_names=names)
    config = runs.small("specific_seg")
    config.teacher.checkpoint = path
    stage = stages.build(config)
    assert "decode_head" in stage.frozen()["params"]  # Fake data have no names.
    task = tasks.build(config)
    assert task.classes() == ()
    config.data.classes = 6
    with pytest.raises(
        ValueError, match=r"knows 5 classes, but config\.data\.classes=6"
    ):
        stages.build(config).frozen()
    config.data.classes = 5
    held = {}
    for i in range(2):
        label_map = np.full((70, 80), i, np.uint8)
        held[f"val/{i}.png"] = files.encode(files.pixels((70, 80), i), "PNG")
        held[f"valannot/{i}.png"] = files.encode(label_map, "PNG")
    config.data.update(source="maps", path=str(files.write(tmp_path / "set", held)))
    config.data.update(images="{split}/*", labels="{split}annot/*", eval_split="val")
    for listed, told in (
        ("sky road car tree pole", None),
        ("sky road tree car pole", "its label 2 is 'car', that of the data 'tree'"),
    ):
        classes = tmp_path / "classes.txt"
        classes.write_text(listed.replace(" ", "\n") + "\n")
        config.data.class_list = str(classes)
        stage = stages.build(config)
        if told is None:
            assert stage.frozen()
            continue
        with pytest.raises(ValueError, match=told):
            stage.frozen()


# Mistakes.


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.image_size", (60, 64), "use (64, 64)"),
        ("model.image_size", (16, 64), "coarsest level"),
        ("model.patch", 4, "8 or 16"),
        ("model.taps", (0, 1, 2), "name four blocks"),
        ("model.taps", (0, 0, 1, 2), "of the 2 there are"),
        ("model.aux_width", 0, "config.loss.auxiliary=0.4"),
        ("model.channels", 1, "config.data.mean"),
        ("data.classes", 256, "1 to 255"),
        ("data.classes", 0, "1 to 255"),
        ("loss.divisor", "some", "valid"),
        ("inference.mode", "slides", "slide"),
        ("inference.stride", (65, 64), "leaves gaps"),
        ("inference", dict(mode="whole", scales=(0.5, 1.0)), "each picture is one"),
        ("task", "segment", "segmentation"),
    ],
)
def test_refused_by_name(key, value, told):
    config = runs.small(FINETUNE)
    with config.unlocked():
        given = (
            {f"{key}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
        config.update_from_flattened_dict(given)
    with pytest.raises(ValueError) as error:
        stages.build(config)
    assert told in str(error.value)


def test_grey_pictures_have_no_hue():
    config = runs.small(FINETUNE)
    config.model.channels, config.data.mean, config.data.std = 1, (0.5,), (0.5,)
    with pytest.raises(ValueError, match=r"config\.augment\.photometric=0\.5"):
        stages.build(config)
    config.augment.photometric = 0.0
    assert stages.build(config)


def test_a_recipe_of_another_task_is_told_what_it_lacks():
    config = recipes.load("finetune", {"task": "segmentation"})
    with pytest.raises(ValueError, match=r"config\.loss, config\.inference"):
        stages.build(config)


def test_teacher_and_student_see_the_same_patches():
    config = runs.small("specific_seg")
    config.teacher.model.image_size = (128, 128)
    with pytest.raises(ValueError, match="compared pixel by pixel"):
        stages.build(config)


# Whole steps.


def program(config, devices):
    stage = stages.build(config)
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:devices])
    dataset = fake.load(config, "train", stage.reads)
    batches = order.train_batches(dataset, config.batch, config.seed)
    example = next(batches)
    built = step.build(config, stage, mesh)
    return stage, mesh, built, [example, next(batches)]


def test_accumulation_is_refused_by_name():
    config = runs.small(FINETUNE, accumulate=2)
    with pytest.raises(ValueError, match=r"accumulate=2: stage finetune keeps batch_"):
        program(config, 1)


@pytest.mark.slow
def test_same_losses_and_statistics_on_1_2_and_8_devices(monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)
    told, statistics = {}, {}
    for devices, fsdp in ((1, 1), (2, 1), (8, 2)):
        mesh_shape = dict(data=-1, fsdp=fsdp)
        config = runs.small("specific_seg", mesh=mesh_shape)
        stage, mesh, built, batches = program(config, devices)
        frozen = stage.frozen()
        placed = parallel.place(frozen, parallel.shardings(frozen, mesh))
        keys = built.keys()
        state = built.start(built.init(keys["init"]))
        told[devices] = []
        for batch in batches:
            batch = parallel.to_global(batch, mesh)
            state, metrics = built.step(state, placed, batch, keys["step"])
            told[devices].append(float(metrics["loss"]))
        statistics[devices] = jax.device_get(state.model_state)
    for devices in (2, 8):
        np.testing.assert_allclose(told[devices], told[1], rtol=2e-5)
        pairs = zip(
            *map(jax.tree.leaves, (statistics[devices], statistics[1])), strict=True
        )
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_keeps_its_statistics_for_whoever_loads_it(tmp_path, student):
    config, _, variables = student
    state = {key: value for key, value in variables.items() if key != "params"}
    _, _, saved = tiny.optimiser(config, variables["params"])
    manager = checkpoint.Manager(str(tmp_path), keep=1)
    manager.save(1, saved.replace(model_state=state), upernet.describe(config))
    manager.close()
    arrays = loading.read(str(tmp_path), "config.init_from").arrays
    mine = torch_names.to_torch(variables)
    assert set(arrays) == set(mine)
    name = "decode_head.bottleneck.bn.running_var"
    np.testing.assert_array_equal(arrays[name], mine[name])


def test_a_teacher_keeps_its_statistics_in_float32(student):
    kept = parallel.cast(student[2], jnp.bfloat16)
    dtypes = {key: {x.dtype.name for x in jax.tree.leaves(kept[key])} for key in kept}
    assert dtypes == {"params": {"bfloat16"}, "batch_stats": {"float32"}}


def test_a_batch_of_one_picture_is_refused():
    task = segmentation.build(runs.small(FINETUNE, batch=2, accumulate=2))
    batch = {"image": np.zeros((1, 64, 64, 3), np.float32)}
    with pytest.raises(ValueError, match=r"config\.accumulate=2.* at least 2 pictures"):
        task.forward({}, batch, {})
