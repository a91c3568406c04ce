# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation against the authors' PyTorch code, every size from the golden file."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

import golden_files
from g2sd_jax import checkpoint, optim, recipes
from g2sd_jax.losses import cross_entropy, distill
from g2sd_jax.models import pyramid, upernet
from g2sd_jax.ops import relative, resize
from g2sd_jax.weights import relative_tables, segmentors, torch_names
from golden_files import agree, given, under

load = functools.partial(golden_files.load, folder="segmentation")

# Without a true gradient: softmax does not see the keys' bias, nor batch statistics a
# constant per channel. The first is a third of its tensor.
KEYS = r".*\.attn\.qkv\.bias"
BEFORE_NORM = r"(.*\.)?fpn(1\.0|1\.3|2\.0)\.bias"


TABLE = "relative_position_bias_table"


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def filled(module_init, arrays, grid=(1, 1)):
    """Variables of a module, strictly from PyTorch-named arrays."""
    shapes = jax.eval_shape(module_init, jax.random.key(0))
    weights = checkpoint.Weights("the golden file", arrays, {})
    return checkpoint.graft(shapes, weights, grid=grid)


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
    assert given(golden, "layer_norm_eps") == 1e-6
    assert given(golden, "bn_eps") == 1e-5 and given(golden, "bn_momentum") == 0.1
    return pyramid.Backbone(
        width=given(golden, "embed_dim"),
        depth=given(golden, "depth"),
        heads=given(golden, "num_heads"),
        patch=given(golden, "patch_size"),
        image_size=(given(golden, "img_size"),) * 2,
        taps=tuple(golden["config/out_indices"].tolist()),
        mlp_ratio=given(golden, "mlp_ratio"),
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
    cotangents = [
        nhwc(golden[f"input/cotangent_level{level}"]) for level in range(len(grid) * 2)
    ]

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
    classes, width = given(golden, "num_classes"), given(golden, "channels")
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
    name = f"level{given(golden, 'in_index')}"
    head = upernet.FcnHead(given(golden, "num_classes"), given(golden, "channels"))
    given_map = jnp.asarray(nhwc(golden[f"input/{name}"]))
    grad = check_head(golden, head, given_map, lambda out: out)
    agree(grad, nhwc(golden[f"grad/input/{name}"]), name, 1e-4)


# Losses.


def test_seg_losses():
    golden = load("seg_losses")
    assert given(golden, "ignore_index") == cross_entropy.IGNORED
    cases = {name.split("/")[0] for name in under(golden, "input")}
    for case in sorted(cases):
        logits = jnp.asarray(nhwc(golden[f"input/{case}/logits"]))
        label_map = golden[f"input/{case}/label"].astype(np.uint8)
        loss = jax.jit(jax.value_and_grad(cross_entropy.pixels))
        value, grad = loss(logits, label_map)
        accuracy = 100 * cross_entropy.pixel_accuracy(logits, label_map)
        for head in ("decode", "aux"):
            weight = given(golden, f"loss_weight_{head}")
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
    source, target = (given(golden, f"{tag}/{who}_grid") for who in ("src", "dst"))
    if "source_coords" in wanted:
        coordinates = relative_tables.coordinates(source, target)
        agree(coordinates, wanted.pop("source_coords"), tag, 1e-5)
    width = wanted["pos_embed"].shape[-1]
    tables = [n for n in wanted if n.endswith(TABLE)]
    heads = wanted[tables[0]].shape[1] if tables else 2
    model = pyramid.Backbone(
        width=width,
        depth=max(1, len(tables)),
        heads=heads,
        patch=16,
        image_size=(16 * target,) * 2,
        taps=(0,) * 4,
    )
    blank = jnp.zeros((1, *model.image_size, 3))
    shapes = jax.eval_shape(lambda k: model.init(k, blank, True), jax.random.key(0))
    # What the file leaves out of an encoder; the rest stays as it is initialised.
    blank = {n: np.zeros(s, np.float32) for n, s in torch_names.shapes(shapes).items()}
    rest = {n: a for n, a in blank.items() if n not in wanted}
    rest = {n: a for n, a in rest.items() if segmentors.ENCODER.match(n)}
    rest = {n: a for n, a in rest.items() if not n.endswith(TABLE)}
    weights = segmentors.rename({**rest, **arrays}, "student", 16)
    weights = checkpoint.Weights("the golden file", weights, {})
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    variables = {key: {"backbone": tree} for key, tree in zeros.items()}
    fresh = [r"backbone\.fpn.*"] + [rf".*{TABLE}"] * (not tables)
    got = checkpoint.graft(variables, weights, grid=(target,) * 2, fresh=fresh)
    got = torch_names.to_torch(got)
    for name, array in wanted.items():
        agree(got[f"backbone.{name}"], array, f"{tag}: {name}", 1e-5)
    left = [n for n in got if n.endswith(TABLE) and n[len("backbone.") :] not in wanted]
    assert not any(got[name].any() for name in left)
    assert bool(left) == (not tables)
