# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation against the authors' PyTorch code, every size from the golden file."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import golden_files
from g2sd_jax import label_values, optim, recipes, stages, step
from g2sd_jax.data import crops, geometry
from g2sd_jax.evaluators import confusion, sliding
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import pyramid, upernet, vit
from g2sd_jax.ops import label_maps, photometric, relative, resize
from g2sd_jax.weights import (
    graft,
    loading,
    parts,
    relative_tables,
    segmentor_names,
    torch_names,
)
from golden_files import agree, setting, under

load = functools.partial(golden_files.load, folder="segmentation")

# Without a true gradient: softmax does not see the keys' bias, nor batch statistics a
# constant per channel. The first is a third of its tensor.
KEYS = r".*\.attn\.qkv\.bias"
BEFORE_NORM = r"(.*\.)?fpn(1\.0|1\.3|2\.0)\.bias"


TABLE = "relative_position_bias_table"


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def without(prefix, arrays):
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def filled(module_init, arrays, grid=(1, 1)):
    """Variables of a module, strictly from PyTorch-named arrays."""
    shapes = jax.eval_shape(module_init, jax.random.key(0))
    weights = loading.Weights("the golden file", arrays, {})
    return graft.onto(shapes, weights, grid=grid)


def pixel_pairs(golden):
    """(name, input, wanted, target size) of a file of resized or pooled maps."""
    for name, wanted in under(golden, "output").items():
        source, target = name.split("_to_")
        image = jnp.asarray(nhwc(golden[f"input/{source}"]))
        yield name, image, nhwc(wanted), tuple(map(int, target.split("x")))


def test_resize_bilinear():
    for name, image, wanted, size in pixel_pairs(load("resize_bilinear")):
        agree(resize.bilinear(image, size), wanted, name, 1e-5)


def test_adaptive_avg_pool():
    for name, image, wanted, (count,) in pixel_pairs(load("adaptive_avg_pool")):
        agree(resize.adaptive_pool(image, count), wanted, name, 1e-5)


def test_relpos_index():
    golden = load("relpos_index")
    for window in {key.split("/")[0] for key in under(golden, "config")}:
        grid = tuple(golden[f"config/{window}/window"].tolist())
        table = golden[f"param/{window}/relative_position_bias_table"]
        wanted = under(golden, f"output/{window}")
        index = relative.index(grid)
        np.testing.assert_array_equal(index, wanted["relative_position_index"])
        bias = jax.jit(relative.bias, static_argnums=1)(jnp.asarray(table), grid)
        np.testing.assert_array_equal(bias, wanted["bias"])


# Backbone and heads.


def backbone_of(golden):
    assert setting(golden, "layer_norm_eps") == 1e-6
    assert setting(golden, "bn_eps") == 1e-5 and setting(golden, "bn_momentum") == 0.1
    return pyramid.Backbone(
        width=setting(golden, "embed_dim"),
        depth=setting(golden, "depth"),
        heads=setting(golden, "num_heads"),
        patch=setting(golden, "patch_size"),
        image_size=(setting(golden, "img_size"),) * 2,
        taps=tuple(golden["config/out_indices"].tolist()),
        mlp_ratio=setting(golden, "mlp_ratio"),
    )


def agree_gradients(got, golden, bound):
    """Every gradient of the file, those that are zero against the largest of all."""
    wanted = under(golden, "grad/param")
    assert set(got) == set(wanted)
    largest = max(np.abs(array).max() for array in wanted.values())
    for name, array in wanted.items():
        agree_but_zeros(got[name], array, name, bound, 1e-6 * largest)


def agree_but_zeros(got, wanted, name, bound, least):
    if re.fullmatch(KEYS, name):
        got, wanted = (bias.reshape(3, -1) for bias in (got, wanted))
        assert np.abs(got[1] - wanted[1]).max() <= least, name
        got, wanted = got[::2], wanted[::2]
    if np.abs(wanted).max() <= least:
        assert np.abs(got - wanted).max() <= least, name
    else:
        agree(got, wanted, name, bound)


def check_backbone(stem):
    golden = load(stem)
    model = backbone_of(golden)
    image = jnp.asarray(nhwc(golden["input/image"]))
    grid = tuple(side // model.patch for side in model.image_size)
    init = lambda key: model.init(key, image, True)
    variables = filled(init, under(golden, "param"), grid)
    cotangents = [nhwc(golden[f"input/cotangent_level{level}"]) for level in range(4)]

    def score(params, image):
        levels = model.apply({**variables, "params": params}, image, False)
        pairs = zip(levels.maps, cotangents, strict=True)
        return sum((x * y).sum() for x, y in pairs), levels

    gradient = jax.jit(jax.value_and_grad(score, (0, 1), has_aux=True))
    (_, levels), grads = gradient(variables["params"], image)
    for block in range(model.depth):
        wanted = golden[f"output/tokens_block{block}"]
        agree(levels.tokens[block], wanted, f"tokens_block{block}")
    for level, got in enumerate(levels.maps):
        wanted = golden[f"output/eval/level{level}"]
        agree(got, nhwc(wanted), f"level {level}")
    agree_gradients(torch_names.to_torch(grads[0]), golden, 1e-4)
    agree(grads[1], nhwc(golden["grad/input/image"]), "gradient of image", 1e-4)
    return golden, model, variables, image


def test_backbone():
    golden, model, variables, image = check_backbone("backbone")
    train = jax.jit(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]))
    levels, state = train(variables, image)
    agree(levels.maps[0], nhwc(golden["output/train/level0"]), "train/level0")
    agree_statistics(state, under(golden, "output/train"))
    # Scaled by 0, no branch adds anything to the tokens that the blocks were given.
    blocks = variables["params"]["blocks"]
    blocks |= {name: 0 * blocks[name] for name in ("gamma_1", "gamma_2")}
    tokens = jax.jit(lambda v, x: model.apply(v, x, False).tokens)(variables, image)
    agree(tokens[-1], golden["output/tokens_embed"], "tokens_embed")


def agree_statistics(state, wanted):
    """Every running mean and variance among the wanted arrays."""
    got = torch_names.to_torch(state)
    wanted = {name: wanted[name] for name in wanted if "running" in name}
    assert set(got) == set(wanted)
    for name, array in wanted.items():
        agree(got[name], array, name)


def test_backbone_patch8():
    check_backbone("backbone_patch8")


def check_head(golden, head, given_maps, one, collect=lambda features: {}):
    """A decode or auxiliary head on given maps: values, statistics, gradients."""
    variables = filled(
        lambda key: head.init(key, given_maps, True), under(golden, "param")
    )
    logits = jax.jit(lambda v, x: one(head.apply(v, x, False)))(variables, given_maps)
    agree(logits, nhwc(golden["output/eval/logits"]), "eval/logits")

    def score(params, maps):
        out, state = head.apply(
            {**variables, "params": params}, maps, True, mutable=["batch_stats"]
        )
        return (one(out) * nhwc(golden["input/cotangent"])).sum(), (out, state)

    gradient = jax.jit(jax.value_and_grad(score, (0, 1), has_aux=True))
    (_, (out, state)), grads = gradient(variables["params"], given_maps)
    wanted = under(golden, "output/train")
    agree_statistics(state, under(golden, "output/train/stats"))
    for name, got in {"logits": one(out), **collect(out)}.items():
        agree(got, nhwc(wanted.pop(name)), name)
    assert all(name.startswith("stats/") for name in wanted)
    agree_gradients(torch_names.to_torch(grads[0]), golden, 1e-4)
    return grads[1]


def test_uperhead():
    golden = load("uperhead")
    levels = sorted(name for name in under(golden, "input") if "level" in name)
    maps = tuple(jnp.asarray(nhwc(golden[f"input/{name}"])) for name in levels)
    scales = tuple(golden["config/pool_scales"].tolist())
    classes, width = setting(golden, "num_classes"), setting(golden, "channels")
    head = upernet.UperHead(classes, width, scales)

    def features(out):
        found = {f"ppm{i}": x for i, x in enumerate(out.pooled)}
        found |= {f"lateral{i}": x for i, x in enumerate(out.laterals[:-1])}
        found |= {f"topdown{i}": x for i, x in enumerate(out.merged[:-1])}
        found |= {f"fpn{i}": x for i, x in enumerate(out.smoothed)}
        return found | dict(psp_bottleneck=out.laterals[-1], fpn_bottleneck=out.fused)

    grads = check_head(golden, head, maps, lambda out: out.logits, features)
    for name, got in zip(levels, grads, strict=True):
        agree(got, nhwc(golden[f"grad/input/{name}"]), name, 1e-4)


def test_fcnhead():
    golden = load("fcnhead")
    name = f"level{setting(golden, 'in_index')}"
    head = upernet.FcnHead(setting(golden, "num_classes"), setting(golden, "channels"))
    given_map = jnp.asarray(nhwc(golden[f"input/{name}"]))
    grad = check_head(golden, head, given_map, lambda out: out)
    agree(grad, nhwc(golden[f"grad/input/{name}"]), name, 1e-4)


# Losses.


def test_seg_losses():
    golden = load("seg_losses")
    assert setting(golden, "ignore_index") == label_values.IGNORED
    cases = {name.split("/")[0] for name in under(golden, "input")}
    for case in sorted(cases):
        logits = jnp.asarray(nhwc(golden[f"input/{case}/logits"]))
        label_map = golden[f"input/{case}/label"].astype(np.uint8)
        loss = jax.jit(jax.value_and_grad(cross_entropy.pixels))
        value, grad = loss(logits, label_map)
        accuracy = 100 * cross_entropy.pixel_accuracy(logits, label_map)
        for head in ("decode", "aux"):
            weight = setting(golden, f"loss_weight_{head}")
            wanted = under(golden, f"output/{case}/{head}")
            agree(weight * value, wanted["loss_seg"], f"{case}, {head}")
            agree(accuracy[None], wanted["acc_seg"], f"{case}, {head}: accuracy")
            gradient = nhwc(golden[f"grad/{case}/{head}/logits"])
            agree(weight * grad, gradient, f"{case}, {head}: gradient", 1e-4)


REDUCTIONS = {"batchmean": "batch", "sum": "sum", None: "mean"}


def distillation(name):
    """(loss, weight) of a case such as kl_batchmean_tau2_w1."""
    kind, reduction, tau, weight = re.fullmatch(
        r"(cwd|kl)(?:_(batchmean|sum))?_tau([\d.]+)_w([\d.]+)", name
    ).groups()
    if kind == "cwd":
        return distill.channel_wise, dict(temperature=float(tau)), float(weight)
    keys = dict(temperature=float(tau), reduction=REDUCTIONS[reduction])
    return distill.class_wise, keys, float(weight)


def test_distill_losses():
    golden = load("distill_losses")
    student, teacher = (jnp.asarray(nhwc(golden[f"input/preds_{x}"])) for x in "ST")
    cases = golden["config/cases"].tolist()
    aligned = {key.split("/")[0] for key in under(golden, "output")} - set(cases)
    for name in cases:
        loss, keys, weight = distillation(name)
        value, grad = jax.value_and_grad(
            lambda s, loss=loss, keys=keys, weight=weight: (
                weight * loss(s, teacher, **keys)
            )
        )(student)
        agree(value, golden[f"output/{name}/loss"], name)
        wanted = nhwc(golden[f"grad/{name}/preds_S"])
        agree(grad, wanted, f"gradient of {name}", 1e-4)
    assert aligned
    for name in aligned:
        check_aligned(golden, name, teacher)


def check_aligned(golden, name, teacher):
    """A student of fewer channels, through a 1 x 1 convolution with bias."""
    loss, keys, weight = distillation(name.removeprefix("align_"))
    student = jnp.asarray(nhwc(golden["input/align/preds_S"]))
    if loss is distill.channel_wise:
        keys["channels"] = student.shape[-1]
    params = under(golden, "param")
    kernel = jnp.asarray(params["align.weight"][:, :, 0, 0])

    def value(student, kernel, bias):
        logits = jnp.einsum("bhwc,dc->bhwd", student, kernel)
        logits += bias[None, None, None]
        return weight * loss(logits, teacher, **keys)

    bias = jnp.asarray(params["align.bias"])
    got, grads = jax.value_and_grad(value, (0, 1, 2))(student, kernel, bias)
    agree(got, golden[f"output/{name}/loss"], name)
    wanted = under(golden, f"grad/{name}")
    agree(grads[0], nhwc(wanted["preds_S"]), "student", 1e-4)
    agree(grads[1], wanted["align.weight"][:, :, 0, 0], "align.weight", 1e-4)
    largest = max(np.abs(array).max() for array in wanted.values())
    agree_but_zeros(grads[2], wanted["align.bias"], "bias", 1e-4, 1e-6 * largest)


# Optimiser.


def segmentation_optim(**keys):
    config = recipes.load("finetune:task=segmentation")
    with config.unlocked():
        config.optim.update(keys)
    return config.optim


def test_layer_decay():
    golden = load("layer_decay")
    fields = golden["config/fields"].tolist()
    for case in {key.split("/")[0] for key in under(golden, "output")}:
        said = dict(zip(fields, golden[f"config/{case}"].tolist(), strict=True))
        config = segmentation_optim(
            lr=said["base_lr"],
            wd=said["weight_decay"],
            layer_decay=said["layer_decay_rate"],
        )
        for kind in ("plain", "distill"):
            wanted = under(golden, f"output/{case}/{kind}")
            names = wanted["param_name"].tolist()
            assert optim.depth_of(names) == said["num_layers"]
            found = optim.hyper(config, names)
            scales = np.array([found[name].lr_scale for name in names])
            np.testing.assert_allclose(scales, wanted["lr_scale"], rtol=1e-9)
            np.testing.assert_allclose(config.lr * scales, wanted["lr"], rtol=1e-9)
            decays = [found[name].wd for name in names]
            np.testing.assert_array_equal(decays, wanted["weight_decay"])
            groups = zip(scales, decays, strict=True)
            pairs = set(zip(wanted["group_name"].tolist(), groups, strict=True))
            assert len(pairs) == len({name for name, _ in pairs})


def test_lr_schedule():
    golden = load("lr_schedule")
    for case in {key.split("/")[0] for key in under(golden, "config")}:
        settings = golden[
            f"config/{case}/power_minlr_warmupiters_warmupratio_maxiters"
        ].tolist()
        power, min_lr, warmup, ratio, total = settings
        wanted = golden[f"output/{case}/lr"]
        for column, lr in enumerate(golden[f"config/{case}/base_lr"].tolist()):
            config = segmentation_optim(
                lr=lr,
                power=power,
                min_lr=min_lr,
                warmup_epochs=warmup,
                warmup_start=ratio,
            )
            # The file's limit is that of float64, which a device need not have.
            with jax.enable_x64(True):
                rate = optim.learning_rate(config, 1, total)
                got = rate(golden[f"input/{case}/iteration"])
            np.testing.assert_allclose(got, wanted[:, column], rtol=1e-9)
        single = optim.learning_rate(config, 1, total)
        got = single(golden[f"input/{case}/iteration"])
        agree(got, wanted[:, column], case, 1e-6)


# Weights.


def test_checkpoint_resize():
    golden = load("checkpoint_resize")
    for tag in {key.split("/")[0] for key in under(golden, "output")}:
        check_resized(golden, tag)


def check_resized(golden, tag):
    """The file's entries through the importer and the strict graft."""
    arrays, wanted = under(golden, f"input/{tag}"), under(golden, f"output/{tag}")
    source, target = (setting(golden, f"{tag}/{who}_grid") for who in ("src", "dst"))
    if "source_coords" in wanted:
        coordinates = relative_tables.coordinates(source, target)
        agree(coordinates, wanted.pop("source_coords"), tag, 1e-5)
    tables = [name for name in wanted if name.endswith(TABLE)]
    blocks = range(len(tables) or 1)
    # The tree of a backbone that has just these parameters, and a bias in each block.
    heads = wanted[tables[0]].shape[1] if tables else 1
    rows = relative.rows((target, target))
    block = {"attn": {TABLE: np.zeros((len(blocks), rows, heads), np.float32)}}
    block["norm1"] = {"bias": np.zeros((len(blocks), 1), np.float32)}
    tree = {"blocks": block, "pos_embed": np.zeros_like(wanted["pos_embed"])}
    for name in set(wanted) & {"patch_embed.proj.weight"}:
        kernel = np.zeros_like(wanted[name].transpose(2, 3, 1, 0))
        tree["patch_embed"] = {"kernel": kernel}
    arrays |= {f"blocks.{i}.norm1.bias": np.ones(1, np.float32) for i in blocks}
    arrays = segmentor_names.rename(arrays, "student", 16)
    weights = loading.Weights("the golden file", arrays, {})
    variables = {"params": {"backbone": tree}}
    fresh = [] if tables else [rf".*{TABLE}"]
    got = graft.onto(variables, weights, grid=(target,) * 2, fresh=fresh)
    got = without("backbone.", torch_names.to_torch(got))
    for name, array in wanted.items():
        agree(got[name], array, f"{tag}: {name}", 1e-5)
    if not tables:
        assert not got[f"blocks.0.attn.{TABLE}"].any()


# Colours, and the device's part of the training pipeline.


def agree_in_levels(got, wanted, what, most=2):
    """At most so many grey levels apart, and no more than 1 % of the values at all."""
    apart = np.abs(np.asarray(got, np.float64) - wanted)
    assert apart.max() <= most, f"{what}: {apart.max()} levels"
    assert (apart > 0).mean() <= 0.01, f"{what}: {(apart > 0).mean():.2%} differ"


FIELDS = (
    "brightness_on",
    "brightness_beta",
    "mode",
    "contrast_on",
    "contrast_alpha",
    "saturation_on",
    "saturation_alpha",
    "hue_on",
    "hue_delta",
)


def photometric_draws(row):
    """The draws of one image, from the file's columns."""
    said = dict(zip(FIELDS, row.tolist(), strict=True))
    beta, alpha = said["brightness_beta"], said["contrast_alpha"]
    draws = dict(
        brightness=beta if said["brightness_on"] else 0.0,
        contrast=alpha if said["contrast_on"] else 1.0,
        contrast_first=bool(said["mode"]),
        saturate=bool(said["saturation_on"]),
        saturation=said["saturation_alpha"],
        shift_hue=bool(said["hue_on"]),
        hue=int(said["hue_delta"]),
    )
    return {name: jnp.asarray([value]) for name, value in draws.items()}


def test_photometric():
    golden = load("photometric")
    assert tuple(golden["config/fields"].tolist()) == FIELDS
    image = golden["input/bgr_image"][None, ..., ::-1].astype(np.float32)
    distort = jax.jit(photometric.apply)
    for number, row in enumerate(golden["config/draws"]):
        draws = photometric_draws(row)
        wanted = golden[f"output/case{number:02}"][..., ::-1]
        got, name = distort(image, draws)[0], f"case {number}"
        if draws["saturate"][0] or draws["shift_hue"][0]:
            agree_in_levels(got, wanted, name)
        else:
            np.testing.assert_array_equal(got, wanted, name)
    rgb = golden["input/bgr_random"][..., ::-1]
    hsv = jnp.stack(jax.jit(photometric.to_hsv)(rgb), axis=-1)
    np.testing.assert_array_equal(hsv, golden["output/hsv_of_bgr_random"])
    hsv = jnp.moveaxis(golden["input/hsv_random"].astype(np.float32), -1, 0)
    got = jax.jit(photometric.to_rgb)(*hsv)
    agree_in_levels(got, golden["output/bgr_of_hsv_random"][..., ::-1], "to RGB")


# Whole stages.


def model_keys(golden, who):
    """`config.model` or `config.teacher.model` of a file about two models."""
    fields = golden["config/fields"].tolist()
    said = dict(zip(fields, golden[f"config/{who}"].tolist(), strict=True))
    keys = dict(
        size="custom",
        width=said["embed_dim"],
        heads=said["num_heads"],
        depth=setting(golden, "depth"),
        patch=setting(golden, "patch_size"),
        image_size=(setting(golden, "img_size"),) * 2,
        taps=tuple(golden["config/out_indices"].tolist()),
        head_width=said["decode_channels"],
    )
    return keys | (dict(aux_width=said["aux_channels"]) if who == "student" else {})


def distiller(golden, folder, **optim_keys):
    """Config, stage, student and teacher of the file, through the shipped recipe."""
    path = str(folder / "both.safetensors")
    # As published: the teacher is found beside the student in one file.
    safetensors.numpy.save_file(under(golden, "param"), path)
    config = recipes.load(
        "specific_seg",
        {
            "model": model_keys(golden, "student"),
            "teacher.model": model_keys(golden, "teacher"),
            "teacher.checkpoint": path,
            "init_from": path,
            "compute_dtype": "float32",
            "inference.stride": (setting(golden, "img_size"),) * 2,
            "data.classes": setting(golden, "num_classes"),
            "distill.weight": setting(golden, "cwd_weight"),
            "distill.temperature": setting(golden, "cwd_tau"),
            **{f"optim.{key}": value for key, value in optim_keys.items()},
        },
    )
    stage = stages.build(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    student = jax.tree.map(jnp.asarray, stage.warm_start(shapes))
    return config, stage, student, jax.tree.map(jnp.asarray, stage.frozen())


TERMS = {"decode.loss_seg": "decode", "aux.loss_seg": "aux", "loss_cwd": "cwd"}


def agree_terms(told, wanted, bound=2e-5):
    for theirs, ours in TERMS.items():
        agree(told[f"loss/{ours}"], wanted[theirs], theirs, bound)


def test_distiller_forward(tmp_path):
    golden = load("distiller_forward")
    config, stage, student, frozen = distiller(golden, tmp_path)
    image = jnp.asarray(nhwc(golden["input/image"]))
    batch = {"image": image, "label_map": golden["input/label"]}
    wanted = under(golden, "output")

    def loss(params):
        state = {"batch_stats": student["batch_stats"]}
        return stage.loss(params, state, frozen, batch, {}, jnp.int32(0))

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (state, told)), grads = gradient(student["params"])
    agree(total, wanted["total_loss"], "total_loss")
    agree_terms(told, wanted)
    statistics = under(golden, "output/stats")
    agree_statistics(state, without("student.", statistics))
    grads = torch_names.to_torch(grads)
    expected = without("student.", under(golden, "grad"))
    assert set(grads) == set(expected)
    largest = max(np.abs(array).max() for array in expected.values())
    for name, array in expected.items():
        agree_but_zeros(grads[name], array, name, 2e-4, 1e-6 * largest)

    classes = config.data.classes
    models = (
        upernet.segmentor(config.model, classes),
        upernet.segmentor(config.teacher.model, classes, aux=False),
    )
    train = jax.jit(lambda v: models[0].apply(v, image, True, mutable=["batch_stats"]))
    out, _ = train(student)
    agree(out.logits, nhwc(wanted["student_conv_seg"]), "student_conv_seg", 5e-5)
    seen = jax.jit(lambda v: models[1].apply(v, image, False))(frozen).logits
    agree(seen, nhwc(wanted["teacher_conv_seg"]), "teacher_conv_seg", 5e-5)
    for name, logits in (("decode", out.logits), ("aux", out.auxiliary)):
        accuracy = 100 * cross_entropy.pixel_accuracy(logits, batch["label_map"])
        agree(accuracy[None], wanted[f"{name}.acc_seg"], f"{name}.acc_seg")


# Followers of parameters that have no true gradient, so that rounding moves them.
FOLLOWERS = r"backbone\.fpn1\.1\.running_mean|"
FOLLOWERS += r"decode_head\.lateral_convs\.[01]\.bn\.running_mean"


def test_distiller_steps(tmp_path):
    golden = load("distiller_steps")
    first = load("distiller_forward")
    betas = golden["config/betas"].tolist()
    config, stage, student, frozen = distiller(
        first,
        tmp_path,
        lr=setting(golden, "base_lr"),
        wd=setting(golden, "weight_decay"),
        layer_decay=setting(golden, "layer_decay_rate"),
        b1=betas[0],
        b2=betas[1],
        eps=setting(golden, "eps"),
        power=setting(golden, "power"),
        min_lr=setting(golden, "min_lr"),
        warmup_epochs=float(setting(golden, "warmup_iters")),
        warmup_start=setting(golden, "warmup_ratio"),
    )
    rate = optim.learning_rate(config.optim, 1, setting(golden, "max_iters"))
    names = torch_names.names(student["params"])
    tx = optim.build(config.optim, names, rate)
    stage = stage._replace(draw=lambda key, batch: {})
    advance = jax.jit(step.train_step(stage, tx, rate, 1))
    state = step.new_state(student, tx)
    output, groups = under(golden, "output"), golden["config/group_name"].tolist()
    ids = [int(name.split("_")[1]) for name in groups]
    last = max(ids)
    for number, image in enumerate(golden["input/image"]):
        scales = [setting(golden, "layer_decay_rate") ** (last - i) for i in ids]
        wanted = output[f"lr_step{number}"]
        agree(float(rate(number)) * np.array(scales), wanted, f"rates {number}", 1e-6)
        batch = {"image": nhwc(image), "label_map": golden["input/label"][number]}
        state, told = advance(state, frozen, batch, jax.random.key(0))
        total = output[f"total_loss_step{number}"]
        agree(told["loss"], total, f"loss {number}", 5e-5)
        agree_terms(told, under(golden, f"output/step{number}"), 5e-5)
    got = torch_names.to_torch(state.variables)
    wanted = without("student.", under(golden, "output/final"))
    left = set(wanted) - set(got)
    assert left == graft.matching(wanted, parts.BUFFERS)
    exempt = setting(golden, "base_lr") * len(golden["input/image"])
    for name, array in got.items():
        agree_final(array, wanted[name], name, exempt)


def agree_final(got, wanted, name, exempt):
    if re.fullmatch(KEYS, name):
        got, wanted = (bias.reshape(3, -1) for bias in (got, wanted))
        assert np.abs(got[1] - wanted[1]).max() <= exempt, name
        agree(got[::2], wanted[::2], name, 5e-5)
    elif re.fullmatch(BEFORE_NORM, name):
        assert np.abs(got - wanted).max() <= exempt, name
    else:
        agree(got, wanted, name, 5e-4 if re.fullmatch(FOLLOWERS, name) else 5e-5)


# Inference and its measure.


def test_inference():
    golden = load("inference")
    crop = setting(golden, "crop_size")
    keys = dict(
        size="custom",
        width=setting(golden, "embed_dim"),
        heads=setting(golden, "num_heads"),
        depth=setting(golden, "depth"),
        patch=setting(golden, "patch_size"),
        image_size=(crop, crop),
        taps=tuple(golden["config/out_indices"].tolist()),
        head_width=setting(golden, "decode_channels"),
    )
    config = recipes.load("finetune:task=segmentation", {"model": keys})
    model = upernet.segmentor(config.model, setting(golden, "num_classes"), aux=False)
    arrays = under(golden, "param")
    weights = loading.Weights("the golden file", arrays, {})
    shapes = jax.eval_shape(lambda key: upernet.init(model, key), jax.random.key(0))
    variables = graft.onto(
        shapes,
        weights,
        grid=vit.grid(config.model),
        dropped=(r"auxiliary_head\..*",),
    )
    apply = jax.jit(lambda window: model.apply(variables, window, False).logits)
    stride = setting(golden, "stride")
    plan = sliding.Plan("slide", (crop, crop), (stride, stride), (crop, 4 * crop))

    def judged(name, size=None):
        """Function from a size to the logits of that size."""
        image = nhwc(golden[f"input/{name}_image"])[0]
        image = image[: size[0], : size[1]] if size else image
        windows = sliding.cut(image, plan)
        logits = {}
        for place, window in windows.items():
            short = [(0, crop - side) for side in window.shape[:2]]
            window = np.pad(window, [*short, (0, 0)])
            logits[place] = np.asarray(apply(window[None])[0])
        logits, own = sliding.in_order(logits), image.shape[:2]
        strips = lambda out: list(sliding.merged(logits, own, out, plan))
        return own, lambda out: np.concatenate(strips(out))

    for name in ("slide", "small"):
        wanted = under(golden, f"output/{name}")
        size, at = judged(name)
        agree(at(size), nhwc(wanted["logits"])[0], f"{name}: logits", 5e-5)
        out = tuple(golden[f"config/{name}_ori_shape"].tolist())
        rescaled = at(out)
        agree(rescaled, nhwc(wanted["logits_rescaled"])[0], f"{name}: rescaled", 5e-5)
        if "pred" in wanted:
            clear = wanted["prob_margin"][0] >= 1e-4
            best = rescaled.argmax(axis=-1)[clear]
            np.testing.assert_array_equal(best, wanted["pred"][0][clear])
        places = sliding.cut(np.zeros((*size, 1)), plan)
        rows, columns = (sliding.starts(side, crop, stride) for side in size)
        seen = [
            (rows[i], rows[i] + len(w), columns[j], columns[j] + w.shape[1])
            for (i, j), w in places.items()
        ]
        np.testing.assert_array_equal(seen, wanted["windows_y1y2x1x2"])

    wanted = under(golden, "output/whole")
    size, at = judged("whole")
    agree(at(size), nhwc(wanted["logits"])[0], "whole", 5e-5)
    out = tuple(golden["config/whole_ori_shape"].tolist())
    agree(at(out), nhwc(wanted["logits_rescaled_full"])[0], "full", 5e-5)
    # The picture is only a part of what was padded already.
    valid = tuple(golden["config/whole_valid_shape"].tolist())
    window = np.asarray(apply(nhwc(golden["input/whole_image"]))[0])
    strips = sliding.merged(window[None, None], valid, out, plan)
    got = np.concatenate(list(strips))
    agree(got, nhwc(wanted["logits_rescaled_valid"])[0], "valid", 5e-5)


def test_miou():
    golden = load("miou")
    classes = setting(golden, "num_classes")
    assert setting(golden, "ignore_index") == label_values.IGNORED
    for case in {key.split("/")[0] for key in under(golden, "input")}:
        told, wanted = under(golden, f"input/{case}"), under(golden, f"output/{case}")
        total = np.zeros((classes, classes), np.int64)
        for name in sorted(name for name in told if name.startswith("pred")):
            number = name.removeprefix("pred")
            truth = told[f"gt{number}"]
            if case == "reduce_zero":
                truth = geometry.reduce_zero(truth)
            counts = confusion.count_pixels(told[name], truth, classes)
            areas = under(golden, f"output/{case}/img{number}")
            hit, predicted, label = np.diag(counts), counts.sum(0), counts.sum(1)
            np.testing.assert_array_equal(hit, areas["intersect"])
            np.testing.assert_array_equal(predicted, areas["pred_area"])
            np.testing.assert_array_equal(label, areas["label_area"])
            np.testing.assert_array_equal(predicted + label - hit, areas["union"])
            total += counts
        each, found = confusion.per_class(total), confusion.scores(total)
        near = dict(rtol=1e-9, equal_nan=True)
        np.testing.assert_allclose(each["iou"], wanted["per_class_iou"], **near)
        np.testing.assert_allclose(each["accuracy"], wanted["per_class_acc"], **near)
        for name in ("mIoU", "mAcc"):
            exact = 100 * wanted[f"{name}_unrounded"]
            np.testing.assert_allclose(found[name], exact, rtol=1e-9)
        np.testing.assert_allclose(found["aAcc"], 100 * wanted["aAcc"], rtol=1e-9)
        for name, value in found.items():
            reported = round(value, 2) / 100
            assert reported == pytest.approx(float(wanted[f"reported_{name}"]), 1e-9)


# The training pipeline, stage by stage, each from the file's previous stage.


def test_pipeline_sizes_and_labels():
    golden = load("pipeline")
    for u, box, size, wanted in zip(
        golden["input/size_table/u"],
        golden["output/size_table/scale_wh"],
        golden["input/size_table/hw"].tolist(),
        golden["output/size_table/new_hw"],
        strict=True,
    ):
        assert geometry.scaled_box((2048, 512), 0.5 + 1.5 * u) == tuple(box)
        np.testing.assert_array_equal(geometry.fit_size(size, box), wanted)
    reduced = geometry.reduce_zero(golden["input/reduce_zero_label"])
    np.testing.assert_array_equal(reduced, golden["output/reduce_zero_label"])


@pytest.fixture(scope="module")
def pipeline():
    return load("pipeline")


def cases(golden):
    return {key.split("/")[1] for key in golden if key.endswith("/resize_img")}


def test_pipeline_resize(pipeline):
    low, high = pipeline["config/ratio_range"].tolist()
    for case in cases(pipeline):
        wanted = under(pipeline, f"output/{case}")
        scale = low + (high - low) * setting(pipeline, f"{case}/u")
        box = geometry.scaled_box(pipeline["config/img_scale_wh"].tolist(), scale)
        assert box == tuple(wanted["scale_wh"])
        image, label = (pipeline["input/bgr_image"], pipeline[f"input/{case}/label"])
        size = geometry.fit_size(label.shape, box)
        got = geometry.resize_image(image, size).astype(int)
        assert np.abs(got - wanted["resize_img"]).max() <= 1
        got = geometry.resize_labels(label, size)
        np.testing.assert_array_equal(got, wanted["resize_label"])


def test_pipeline_crop(pipeline):
    size = tuple(pipeline["config/crop_size"].tolist())
    share = setting(pipeline, "cat_max_ratio")
    for case in cases(pipeline):
        wanted = under(pipeline, f"output/{case}")
        offsets = pipeline[f"config/{case}/crop_offset_draws_yx"]
        chosen = crops.first_varied_crop(wanted["resize_label"], size, offsets, share)
        assert chosen + 1 == wanted["crop_draws_used"], case
        y, x = offsets[chosen]
        for name in ("img", "label"):
            got = wanted[f"resize_{name}"][y : y + size[0], x : x + size[1]]
            np.testing.assert_array_equal(got, wanted[f"crop_{name}"])


def on_canvas(picture, canvas, fill):
    padding = [
        (0, side - have) for side, have in zip(canvas, picture.shape, strict=False)
    ]
    padding += [(0, 0)] * (picture.ndim - 2)
    return np.pad(picture, padding, constant_values=fill)[None]


def test_pipeline_on_the_device(pipeline):
    """Flip, colour, normalisation and padding of crops that come padded."""
    canvas = tuple(pipeline["config/crop_size"].tolist())
    mean, std = (pipeline[f"config/{name}"] / 255 for name in ("mean", "std"))
    spec = label_maps.Spec(tuple(mean.tolist()), tuple(std.tolist()))
    for case in sorted(cases(pipeline)):
        wanted = under(pipeline, f"output/{case}")
        rgb = {n: a[..., ::-1] for n, a in wanted.items() if n.endswith("_img")}
        size = np.array([wanted["crop_label"].shape], np.int32)
        flip = jnp.asarray([setting(pipeline, f"{case}/flip_u") < 0.5])
        for name in ("img", "label"):
            crop = wanted[f"crop_{name}"].reshape(*size[0], -1)
            crop = jnp.asarray(on_canvas(crop, canvas, 0))
            got = np.asarray(label_maps.mirror(crop, flip, size))
            got = got[0, : size[0, 0], : size[0, 1]]
            flipped = wanted[f"flip_{name}"].reshape(got.shape)
            np.testing.assert_array_equal(got, flipped)
        draws = photometric_draws(pipeline[f"config/{case}/photometric_draws"])
        distorted = photometric.apply(rgb["flip_img"][None].astype(np.float32), draws)
        # OpenCV rounds in the columns beyond the last multiple of 32.
        whole = size[0, 1] // 32 * 32
        got, expected = np.asarray(distorted[0]), rgb["photometric_img"].astype(int)
        if whole:
            agree_in_levels(got[:, :whole], expected[:, :whole], case)
        assert np.abs(got - expected).max() <= (2 if whole == size[0, 1] else 3)
        batch = {
            "image": on_canvas(rgb["photometric_img"], canvas, 99),
            "label_map": on_canvas(wanted["flip_label"], canvas, 255),
            "image_size": size,
        }
        got = label_maps.prepare(batch, {}, spec)
        image, final = np.asarray(got["image"][0]), wanted["final_img_rgb"]
        assert np.abs(image - final).max() <= 1e-5
        picture = image[: size[0, 0], : size[0, 1]]
        assert np.abs(picture - wanted["normalize_img_rgb"]).max() <= 1e-5
        np.testing.assert_array_equal(got["label_map"][0], wanted["final_label"])
        check_whole_pipeline(batch, wanted, rgb, draws | {"flip": flip}, spec, case)


def check_whole_pipeline(batch, wanted, rgb, draws, spec, case):
    """The one call that training makes, from the crop to the network's input."""
    canvas = batch["image"].shape[1:3]
    crop = {
        "image": on_canvas(rgb["crop_img"], canvas, 7),
        "label_map": on_canvas(wanted["crop_label"], canvas, 255),
        "image_size": batch["image_size"],
    }
    got = jax.jit(lambda b, d: label_maps.prepare(b, d, spec))(crop, draws)
    np.testing.assert_array_equal(got["label_map"][0], wanted["final_label"])
    apart = np.abs(np.asarray(got["image"][0]) - wanted["final_img_rgb"])
    assert apart.max() * min(spec.std) * 255 <= 3.01, case
