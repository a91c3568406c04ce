# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Presets on names of the papers' models, schedules by hand, and single updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from g2sd_jax import optim, recipes


def optimiser(recipe="finetune", **changes):
    """`config.optim` of a shipped recipe with some keys changed, or added."""
    config = recipes.load(recipe).optim
    with config.unlocked():
        config.update(changes)
    return config


def blocks(depth, prefix=""):
    """A name in every block, so that the depth can be read off."""
    return [f"{prefix}blocks.{i}.mlp.fc1.weight" for i in range(depth)]


# Presets.


def test_pretraining_spares_vectors_only():
    decayed = "cls_token mask_token patch_embed.proj.weight blocks.0.attn.qkv.weight"
    decayed += " decoder_embed.weight decoderfeature_pred.fc1.weight"
    spared = "patch_embed.proj.bias blocks.0.norm1.weight norm.bias norm.weight"
    spared += " decoder_norm.weight decoder_blocks.1.norm2.weight fc_norm.weight"
    spared += " blocks.0.attn.qkv.bias head.bias"
    names = [*decayed.split(), *spared.split()]
    said = optim.hyper(optimiser("pretrain", wd=0.05), names)
    assert said == {
        name: optim.Hyper(0.05 if name in decayed.split() else 0.0) for name in names
    }
    probe = optim.hyper(optimiser(preset="linprobe", wd=0.1), ["head.1.weight"])
    assert probe["head.1.weight"].wd == 0.1


def test_finetuning_decays_by_layer():
    names = [*blocks(12), "cls_token", "pos_embed", "dist_token", "head_dist.weight"]
    names += ["patch_embed.proj.weight", "fc_norm.weight", "head.bias"]
    config = optimiser(layer_decay=0.75, wd=0.05)
    said = optim.hyper(config, names)
    for i in range(12):
        name = f"blocks.{i}.mlp.fc1.weight"
        assert said[name] == optim.Hyper(0.05, pytest.approx(0.75 ** (12 - i)))
    lowest = pytest.approx(0.02376, rel=1e-3)
    assert said["cls_token"] == said["pos_embed"] == optim.Hyper(0.0, lowest)
    assert said["patch_embed.proj.weight"] == optim.Hyper(0.05, lowest)
    assert said["dist_token"] == said["head.bias"] == optim.Hyper(0.0, 1.0)
    assert said["head_dist.weight"] == optim.Hyper(0.05, 1.0)
    config.decay_dist_token = True
    assert optim.hyper(config, names)["dist_token"] == optim.Hyper(0.05, 1.0)


def test_segmentation_decays_tokens_and_tables():
    wanted = {  # Name: weight decay, layer id (of 13).
        "backbone.cls_token": (0.05, 0),
        "backbone.pos_embed": (0.05, 0),
        "backbone.patch_embed.proj.weight": (0.05, 0),
        "backbone.patch_embed.proj.bias": (0, 0),
        "backbone.blocks.0.norm1.weight": (0, 1),
        "backbone.blocks.0.attn.relative_position_bias_table": (0.05, 1),
        "backbone.blocks.3.gamma_1": (0, 4),
        "backbone.blocks.11.attn.qkv.weight": (0.05, 12),
        "backbone.fpn1.0.weight": (0.05, 13),
        "backbone.fpn1.1.weight": (0, 13),
        "decode_head.conv_seg.weight": (0.05, 13),
        "decode_head.conv_seg.bias": (0, 13),
        "decode_head.psp_modules.0.1.bn.weight": (0, 13),
        "auxiliary_head.convs.0.conv.weight": (0.05, 13),
    }
    names = blocks(12, "backbone.") + list(wanted)
    keys = dict(layer_decay=0.65, wd=0.05, decay_positions=True)
    config = optimiser(preset="segmentation", **keys)
    said = optim.hyper(config, names)
    for name, (wd, layer) in wanted.items():
        scale = pytest.approx(0.65 ** (13 - layer))
        assert said[name] == optim.Hyper(wd, scale), name
    assert said["backbone.cls_token"].lr_scale == pytest.approx(0.003697, rel=1e-3)
    config.decay_positions = False
    spared = optim.hyper(config, names)
    changed = {name for name in names if said[name].wd != spared[name].wd}
    assert changed == {
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.blocks.0.attn.relative_position_bias_table",
    }


def test_detection_spares_only_block_norms_and_positions():
    wanted = {
        "backbone.net.pos_embed": (0, 0),
        "backbone.net.patch_embed.proj.weight": (0.05, 0),
        "backbone.net.patch_embed.proj.bias": (0.05, 0),
        "backbone.net.blocks.0.norm1.weight": (0, 1),
        "backbone.net.blocks.11.norm2.bias": (0, 12),
        "backbone.net.blocks.5.attn.rel_pos_h": (0.05, 6),
        "backbone.net.blocks.5.attn.qkv.bias": (0.05, 6),
        "backbone.simfp_2.1.weight": (0.05, 13),
        "backbone.simfp_2.4.norm.weight": (0.05, 13),
        "roi_heads.box_head.conv1.norm.bias": (0.05, 13),
        "roi_heads.box_predictor.cls_score.bias": (0.05, 13),
        "proposal_generator.rpn_head.conv.weight": (0.05, 13),
    }
    names = blocks(12, "backbone.net.") + list(wanted)
    config = optimiser(preset="detection", layer_decay=0.7, wd=0.05)
    said = optim.hyper(config, names)
    spared = {name for name in said if not said[name].wd}
    assert spared == {name for name in wanted if not wanted[name][0]}
    for name, (wd, layer) in wanted.items():
        assert said[name] == optim.Hyper(wd, pytest.approx(0.7 ** (13 - layer))), name


def test_first_matching_rule_wins_and_none_is_an_error(monkeypatch):
    rules = ((r"head\..*", {"lr_scale": 2.0}), (r"head\.bias", {"wd": 9.0}))
    config = optimiser("pretrain", rules=rules)
    said = optim.hyper(config, ["head.bias", "other.weight"])
    assert said["head.bias"] == optim.Hyper(lr_scale=2.0)
    assert said["other.weight"].wd == config.wd
    monkeypatch.setitem(optim.PRESETS, "pretrain", lambda *_: ())
    with pytest.raises(ValueError, match=r"no rule .* matches .*'other\.weight'"):
        optim.hyper(config, ["head.bias", "other.weight"])
    with pytest.raises(ValueError, match=r"config\.optim\.preset='finetun' .*finetune"):
        optim.hyper(optimiser(preset="finetun"), ["head.bias"])


def test_depth_counts_encoder_blocks_only():
    names = [*blocks(3), *blocks(8, "decoder_"), *blocks(5, "backbone.net.")]
    assert optim.depth_of(names) == 5
    assert optim.depth_of(names[:11]) == 3
    assert optim.depth_of(["head.weight"]) == 0


# Schedules.


@pytest.mark.parametrize(
    ("recipe", "lr", "min_lr", "warmup", "b2"),
    [
        ("pretrain", 2.4e-3, 0.0, 40, 0.95),
        ("generic_distill", 2.4e-3, 2.5e-6, 10, 0.95),
        ("finetune:model=b16", 2e-3, 1e-6, 5, 0.999),
        ("finetune:model=l16", 4e-3, 1e-6, 5, 0.999),
        ("specific_cls", 4e-3, 1e-6, 5, 0.999),
    ],
)
def test_shipped_rates_are_the_published(recipe, lr, min_lr, warmup, b2):
    config = optimiser(recipe)
    assert config.lr == pytest.approx(lr) and config.min_lr == min_lr
    found = (config.warmup_epochs, config.wd, config.b1, config.b2, config.clip)
    assert found == (warmup, 0.05, 0.9, b2, 0)


def test_cosine_by_hand():
    config = optimiser(lr=1.0, min_lr=0.2, warmup_epochs=2.0)
    rate = optim.learning_rate(config, 5, 60)
    np.testing.assert_allclose(rate(0), 0)
    np.testing.assert_allclose(rate(5), 0.5)
    np.testing.assert_allclose(rate(10), 1)
    np.testing.assert_allclose(rate(35), 0.6, rtol=1e-6)
    np.testing.assert_allclose(rate(60), 0.2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"warmup_epochs=2\.0 does not end before"):
        optim.learning_rate(config, 5, 10)


def test_poly_by_hand():
    keys = dict(power=1.0, warmup_start=1e-6, warmup_epochs=1500.0, min_lr=0.0)
    config = optimiser(schedule="poly", lr=1e-4, **keys)
    rate = optim.learning_rate(config, 1, 160_000)
    t = np.array([0, 1, 750, 1499, 1500, 80_000, 159_999])
    expected = 1e-4 * (1 - t / 160_000)
    warm = np.where(t < 1500, 1 - (1 - t / 1500) * (1 - 1e-6), 1)
    got = np.array([rate(each) for each in t])
    np.testing.assert_allclose(got, expected * warm, rtol=1e-2)  # The last: float32.
    np.testing.assert_allclose(got[:-1], (expected * warm)[:-1], rtol=1e-6)


def test_the_floor_of_poly_is_added_and_no_maximum():
    keys = dict(power=2.0, warmup_start=0.1, warmup_epochs=4.0, min_lr=0.2)
    rate = optim.learning_rate(optimiser(schedule="poly", lr=1.0, **keys), 1, 10)
    np.testing.assert_allclose(rate(5), 0.8 * 0.25 + 0.2, rtol=1e-6)
    np.testing.assert_allclose(rate(2), 0.55 * (0.8 * 0.64 + 0.2), rtol=1e-6)


@pytest.mark.parametrize("per_epoch", [1, 1848, 1843.75, 246.8, 1619.45])
def test_steps_by_hand(per_epoch):
    total, milestones = 184_375, (163_889, 177_546)
    shares = tuple(each / total for each in milestones)
    keys = dict(milestones=shares, decay=0.1, warmup_start=1e-3)
    keys["warmup_epochs"] = 250 / per_epoch
    config = optimiser(schedule="steps", lr=1e-4, **keys)
    rate = optim.learning_rate(config, per_epoch, total)
    t = np.array([0, 125, 250, 163_888, 163_889, 177_545, 177_546, total - 1])
    expected = np.array([1e-3, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01]) * 1e-4
    np.testing.assert_allclose([rate(each) for each in t], expected, rtol=1e-5)


# Updates.

NAMES = {"head": {"kernel": ("head.weight",), "bias": ("head.bias",)}}


def run(config, rates, grads, start):
    """Parameters after each of the given gradients."""
    tx = optim.build(config, NAMES, lambda step: jnp.asarray(rates)[step])
    params, state, seen = start, tx.init(start), []
    for step, grad in enumerate(grads):
        updates, state = tx.update(grad, state, params, step=step)
        params = optax.apply_updates(params, updates)
        seen.append(params["head"])
    return seen, state


def tree(rng, scale=1.0):
    kernel, bias = rng.normal(size=(3, 2)), rng.normal(size=2)
    leaves = {"kernel": kernel * scale, "bias": bias * scale}
    return {"head": {k: jnp.asarray(v, jnp.float32) for k, v in leaves.items()}}


LARS = dict(name="lars", preset="linprobe", trust_coefficient=0.001, momentum=0.9)


def test_lars_by_hand_with_a_changing_rate(rng):
    start, grads, rates = tree(rng), [tree(rng) for _ in range(4)], [0.0, 3.0, 6.0, 1.0]
    grads[2]["head"]["kernel"] *= 0  # Without a norm there is no ratio.
    config = optimiser("pretrain", wd=0.1, **LARS)
    seen, _ = run(config, rates, grads, start)
    w, b = (np.float64(start["head"][key]) for key in ("kernel", "bias"))
    m_w, m_b = 0 * w, 0 * b
    for grad, rate, got in zip(grads, rates, seen, strict=True):
        g = np.float64(grad["head"]["kernel"]) + 0.1 * w
        m_w = 0.9 * m_w + 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g
        m_b = 0.9 * m_b + np.float64(grad["head"]["bias"])
        w, b = w - rate * m_w, b - rate * m_b
        np.testing.assert_allclose(got["kernel"], w, rtol=1e-5)
        np.testing.assert_allclose(got["bias"], b, rtol=1e-5)


def test_lars_does_not_scale_without_a_norm():
    start = jax.tree.map(jnp.zeros_like, tree(np.random.default_rng(0)))
    grad = jax.tree.map(jnp.ones_like, start)
    seen, _ = run(optimiser("pretrain", wd=0.0, **LARS), [2.0], [grad], start)
    np.testing.assert_allclose(seen[0]["kernel"], -2)


def test_frozen_parameters_do_not_move(rng):
    rules = ((r".*\.weight", {"frozen": True, "wd": 0.5}),)
    config = optimiser("pretrain", rules=rules, wd=0.5)
    start = tree(rng)
    seen, _ = run(config, [0.1] * 3, [tree(rng) for _ in range(3)], start)
    np.testing.assert_array_equal(seen[-1]["kernel"], start["head"]["kernel"])
    assert np.abs(seen[-1]["bias"] - start["head"]["bias"]).max() > 0.05


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_bounds_the_global_norm(rng, scale):
    grad = tree(rng, scale)
    norm = optax.tree.norm(grad)
    _, state = run(optimiser("pretrain", clip=1.0), [0.1], [grad], tree(rng))
    moments = optax.tree_utils.tree_get(state, "mu")
    expected = 0.1 * norm * min(1, 1 / norm)
    np.testing.assert_allclose(optax.tree.norm(moments), expected, rtol=1e-5)


def test_decay_is_decoupled_and_scaled_with_the_rate(rng):
    rules = ((".*", {"wd": 0.5, "lr_scale": 0.25}),)
    start, none = tree(rng), jax.tree.map(jnp.zeros_like, tree(rng))
    seen, _ = run(optimiser(rules=rules), [0.1], [none], start)
    expected = (1 - 0.1 * 0.25 * 0.5) * start["head"]["kernel"]
    np.testing.assert_allclose(seen[0]["kernel"], expected, rtol=1e-6)
