# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Generic distillation from encoders: its losses are the equations of the papers."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import runs
import tiny
from g2sd_jax import recipes, stages
from g2sd_jax.models import mae, variants, vit
from g2sd_jax.ops import patches, resize
from g2sd_jax.tasks import teachers
from g2sd_jax.weights import torch_names

TEACHER = runs.SMALL | dict(width=24, depth=3)
MODELS = {"model": runs.SMALL | runs.DECODER, "teacher.model": TEACHER, "batch": 4}


def stage(recipe, **changes):
    """A tiny recipe, its stage, the variables of both models, and a batch."""
    config = recipes.load(f"generic_distill:smoke,{recipe}", {**MODELS, **changes})
    built = stages.build(config)
    variables = tiny.noisy(jax.device_get(jax.jit(built.init)(jax.random.key(0))))
    frozen = tiny.noisy(built.trim(built.frozen()), seed=2)
    return config, built, variables, frozen, tiny.images(config)


def loss_of(built, variables, frozen, image, noise):
    """The loss and its terms by name."""
    loss = jax.jit(lambda *inputs: built.loss(*inputs, 0))
    batch, draws = {"image": image}, {"noise": noise}
    _, (_, metrics) = loss(variables["params"], {}, frozen, batch, draws)
    return {name: float(value) for name, value in metrics.items()}


def standardised(x):
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def smooth_l1(a, b, beta):
    d = np.abs(a - b)
    return np.where(d < beta, d**2 / (2 * beta), d - beta / 2)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def teacher_module(config, **fields):
    return vit.encoder(config.teacher.model, scan=True, **fields)


def test_the_decoder_predicts_the_hidden_features(rng):
    """MaskDistill: smooth-L1 on what the student does not see, after the last norm."""
    config, built, variables, frozen, image = stage("paper=maskdistill")
    noise = rng.random((4, 16)).astype(np.float32)
    masking = patches.mask(noise, config.mask_ratio)
    student = mae.autoencoder(config.model, pixel_head=False, feature_width=24)
    learned = tiny.apply(student, variables, image, masking).feature
    features = tiny.apply(teacher_module(config), frozen, image).normed
    apart = smooth_l1(np.float64(learned), standardised(features), 2.0).mean(-1)
    hidden = np.asarray(masking.removed, bool)
    want = np.mean([apart[i, 1:][hidden[i]].mean() for i in range(4)])
    assert hidden.sum(1).tolist() == [7] * 4  # 16 less int(16 * 0.6)
    got = loss_of(built, variables, frozen, image, noise)
    np.testing.assert_allclose(got["loss"], want, rtol=1e-5)


def test_all_features_of_a_block_without_a_mask(rng):
    """Proteus: mean squares of all tokens, and of the class token once more."""
    config, built, variables, frozen, image = stage(
        "paper=proteus", **{"distill.teacher_block": 2}
    )
    noise = rng.random((4, 16)).astype(np.float32)
    student = mae.autoencoder(
        config.model, pixel_head=False, dec_depth=0, encoder_feature_width=24
    )
    masking = mae.no_masking(student, 4)
    learned = tiny.apply(student, variables, image, masking).encoder_feature
    module = teacher_module(config, depth=2, pool="none")
    features = tiny.apply(module, frozen, image).tokens  # After the second block.
    square = np.square(np.float64(learned) - np.float64(features)).mean(-1)
    got = loss_of(built, variables, frozen, image, noise)
    np.testing.assert_allclose(got["loss/feature"], square.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["loss/class_token"], square[:, 0].mean(), rtol=1e-5)


def test_relations_of_one_block(rng):
    """TinyMIM: KL of query-key and value-value maps of one block of each."""
    config, built, variables, frozen, image = stage(
        "paper=tinymim",
        **{
            "distill.relation_groups": 2,
            "distill.relation_student_blocks": (1,),
            "distill.relation_teacher_blocks": (0,),
        },
    )
    noise = rng.random((4, 16)).astype(np.float32)
    student = mae.autoencoder(config.model, pixel_head=False, dec_depth=0)
    student = student.clone(relations=True)
    masking = mae.no_masking(student, 4)
    mine = tiny.apply(student, variables, image, masking).qkv
    module = teacher_module(config, depth=1, pool="none", relations=True)
    theirs = tiny.apply(module, frozen, image).qkv

    def maps(qkv, block, a, b):
        a, b = (np.float64(qkv["qkv".index(name)][block]) for name in (a, b))
        grouped = [np.stack(np.split(x, 2, -1), 1) for x in (a, b)]  # [B, 2, T, c]
        width = grouped[0].shape[-1]
        return softmax(grouped[0] @ grouped[1].swapaxes(-1, -2) / np.sqrt(width))

    want = 0.0
    for a, b in ("qk", "vv"):
        p, q = maps(theirs, 0, a, b), maps(mine, 1, a, b)
        want += (p * np.log(p / q)).sum(-1).mean()
    got = loss_of(built, variables, frozen, image, noise)
    np.testing.assert_allclose(got["loss/relation"], want, rtol=1e-5)


def test_visible_patches_are_seen_by_both(rng):
    """What is hidden from both changes no loss, as it does with the full view."""
    changes = {"distill.view": "visible", "mask_ratio": 0.5}
    _, built, variables, frozen, image = stage("target=encoder", **changes)
    noise = np.tile(np.arange(16, dtype=np.float32) / 16, (4, 1))  # The upper half.
    other = image.copy()
    other[:, 8:] = rng.normal(size=other[:, 8:].shape)
    first, second = (
        loss_of(built, variables, frozen, x, noise)["loss"] for x in (image, other)
    )
    assert first == second > 0


def foreign(tmp_path, **fields):
    """A file of an encoder with registers and LayerScale, in DINOv2's own names."""
    variant = variants.Variant(registers=2, layer_scale=1.0)
    module = vit.Vit(24, 3, 2, 8, (32, 32), mlp_ratio=2.0, variant=variant)
    init = jax.jit(lambda key: vit.init(module, key))
    params = tiny.noisy(jax.device_get(init(jax.random.key(1))))["params"]
    arrays = torch_names.to_torch(params)
    arrays["register_tokens"] = arrays.pop("reg_token")
    for name in [name for name in arrays if ".gamma_" in name]:
        block, number = name.split(".gamma_")
        arrays[f"{block}.ls{number}.gamma"] = arrays.pop(name)
    arrays["mask_token"] = np.zeros((1, 24), np.float32)
    path = str(tmp_path / "dinov2.safetensors")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, path)
    return path, module, {"params": params}


def test_a_teacher_is_read_from_its_file(tmp_path, rng):
    """Its architecture, patches of another size, and its own mean and std."""
    path, module, variables = foreign(tmp_path)
    config = recipes.load(
        "generic_distill:target=encoder",
        {
            "model": runs.SMALL | runs.DECODER,
            "batch": 4,
            "compute_dtype": "float32",
            "teacher.checkpoint": path,
            "teacher.model.heads": 2,  # Which no tensor tells.
            "data.mean": (0.1, 0.2, 0.3),
            "data.std": (0.5, 0.5, 0.5),
        },
    )
    built = stages.build(config)
    model = config.teacher.model
    assert (model.size, model.width, model.depth, model.patch) == ("custom", 24, 3, 8)
    assert tuple(model.image_size) == (32, 32)  # The student's grid of 4 x 4.
    assert model.variant.registers == 2 and model.variant.layer_scale == 1.0
    assert model.variant.resize == "bicubic_antialias"
    assert tuple(config.teacher.mean) == (0.485, 0.456, 0.406)
    frozen = built.trim(built.frozen())
    jax.tree.map(np.testing.assert_array_equal, frozen, dict(variables))
    stages.build(config)  # A second time nothing changes.
    assert recipes.with_overrides(config, {}).teacher.model.width == 24

    image = tiny.images(config)
    shown = teachers.picture(image, config, (32, 32))
    pixels = image * 0.5 + np.float32([0.1, 0.2, 0.3])
    mean, std = (np.float32(config.teacher[key]) for key in ("mean", "std"))
    by_hand = (pixels - mean) / std
    enlarged = resize.along_both(by_hand, resize.antialiased_cubic, (32, 32))
    np.testing.assert_allclose(shown, enlarged, atol=2e-5)
    answer = teachers.ask(module, variables, shown, None)
    assert answer.tokens.shape == (4, 17, 24)  # Without its registers.


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"teacher.checkpoint": "random:0"}, "which names no weights"),
        ({"teacher.model.heads": None}, "does not say its number of attention heads"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused(changes, told, tmp_path):
    path, _, _ = foreign(tmp_path)
    values = {"teacher.checkpoint": path, "teacher.model.size": "file", **changes}
    config = recipes.load("generic_distill:target=encoder", values)
    with pytest.raises(ValueError, match=told):
        stages.build(config)


REFUSED = {
    "block": ({"distill.teacher_block": 4}, "choose 1 to 3, or 0 for its last norm"),
    "hidden from none": ({"mask_ratio": 0.0, "distill.view": "visible"}, "hides nothi"),
    "tokens": ({"mask_ratio": 0.0, "distill.tokens": "masked"}, "no hidden patches"),
    "grid": ({"teacher.model.patch": 8}, "set --config.teacher.model.image_size=32,32"),
    "pairs": ({"distill.relation_pairs": ("qx",)}, "distill.relation_pairs='qx'"),
    "std of others": ({"teacher.std": (0.5, 0.6)}, "2 values for config.model.ch"),
    "no term": ({"distill.feature": 0.0}, "feature, class_token and relation are all"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(case):
    changes, told = REFUSED[case]
    config = recipes.load("generic_distill:smoke,target=encoder", {**MODELS, **changes})
    with pytest.raises(ValueError, match=told):
        stages.build(config)
