# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules, and AdamW and LARS with per-parameter rules.

Rules are written on PyTorch-style names, so that a published parameter group can be
read off its paper: `((regex, {"wd": 0.0, "lr_scale": 0.5, "frozen": True}), ...)`. The
first rule whose regex matches the whole name wins, and every parameter must match.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from g2sd_jax import core


class Hyper(NamedTuple):
    """What a rule says of one parameter."""

    wd: float = 0.0
    lr_scale: float = 1.0
    frozen: bool = False


def cosine(config, epoch, epochs):
    """Half a cosine from lr to min_lr, from the warm-up's end to the last epoch."""
    done = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    wave = 0.5 * (1 + jnp.cos(jnp.pi * done))
    return config.min_lr + (config.lr - config.min_lr) * wave


def poly(config, epoch, epochs):
    """(1 - done)^power from the first step on; the warm-up multiplies it."""
    return jnp.maximum(config.lr * (1 - epoch / epochs) ** config.power, config.min_lr)


def steps(config, epoch, epochs):
    """Times `decay` after each share of the run in `milestones`."""
    # A little early, as float32 meets a share such as 163,889 / 184,375 within 2e-7
    # only; a step is longer than that in runs of up to a million steps.
    passed = sum((epoch / epochs >= share - 5e-7) for share in config.milestones)
    return config.lr * config.decay**passed


SCHEDULES = {"cosine": cosine, "poly": poly, "steps": steps}


def learning_rate(config, steps_per_epoch: float, total_steps: int) -> Callable:
    """step -> learning rate of `config.optim`, before any rule's `lr_scale`.

    Cosine warms up from 0 to `lr` (so the first update has rate 0, as published); the
    others multiply the schedule by a line from `warmup_start` to 1.
    """
    schedule = core.lookup("config.optim.schedule", config.schedule, SCHEDULES)
    _require(config, "schedule", config.schedule)
    epochs = total_steps / steps_per_epoch
    if config.warmup_epochs >= epochs:
        raise ValueError(
            f"config.optim.warmup_epochs={config.warmup_epochs} does not end before "
            f"the run does ({epochs:.6g} epochs); shorten it or train longer."
        )

    def rate(step):
        epoch = jnp.asarray(step, float) / steps_per_epoch  # float32 unless in x64.
        value = schedule(config, epoch, epochs)
        if not config.warmup_epochs:
            return value
        ramp = epoch / config.warmup_epochs
        if config.schedule == "cosine":
            warm = config.lr * ramp
        else:
            warm = value * (config.warmup_start + (1 - config.warmup_start) * ramp)
        return jnp.where(epoch < config.warmup_epochs, warm, value)

    return rate


VECTORS = r".*(\.bias|(^|\.)\w*norm\w*\.weight|(^|\.)bn\w*\.weight)"


def depth_of(names: Sequence[str]) -> int:
    """Encoder blocks among the names, wherever the encoder sits."""
    numbers = [
        re.fullmatch(r"(?:.*\.)?(?<!decoder_)blocks\.(\d+)\..*", n) for n in names
    ]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def pretrain(config, names):
    """MAE and stage 1: no decay of biases and norms; class and mask token decay."""
    return ((VECTORS, dict(wd=0.0)), (".*", dict(wd=config.wd)))


def finetune(config, names):
    """BEiT's layer decay: lr_scale = gamma^(depth + 1 - id) (method, section 10)."""
    kept = "cls_token|pos_embed"
    if not config.decay_dist_token:
        kept += "|dist_token"
    return _layer_decay(config, names, f"(.*\\.)?({kept})|{VECTORS}")


def linprobe(config, names):
    """One linear layer: decay (0 as published) for its weight, none for its bias."""
    return pretrain(config, names)


def segmentation(config, names):
    """UperNet: layer decay on the backbone; tokens and position tables do decay."""
    spared = f"{VECTORS}|.*\\.gamma_\\d|.*fpn1\\.1\\.weight"  # All the vectors.
    if not config.decay_positions:
        # The published list of these holds bare names, which the prefixed never match.
        spared += r"|.*\.(cls_token|pos_embed|relative_position_bias_table)"
    return _layer_decay(config, names, spared)


def detection(config, names):
    """ViTDet: only block norms and the absolute positions are spared the decay."""
    spared = r"(.*\.)?pos_embed|.*\.?blocks\.\d+\.norm\d\.(weight|bias)"
    return _layer_decay(config, names, spared)


def _layer_decay(config, names, spared):
    depth = depth_of(names)
    ids = [(r"(.*\.)?(cls_token|pos_embed|patch_embed\..*)", 0)]
    ids += [(rf"(.*\.)?(?<!decoder_)blocks\.{i}\..*", i + 1) for i in range(depth)]
    rules = []
    for regex, layer in [*ids, (".*", depth + 1)]:
        scale = config.layer_decay ** (depth + 1 - layer)
        rules.append((f"(?=({spared})$){regex}", dict(wd=0.0, lr_scale=scale)))
        rules.append((regex, dict(wd=config.wd, lr_scale=scale)))
    return tuple(rules)


PRESETS = {
    "pretrain": pretrain,
    "finetune": finetune,
    "linprobe": linprobe,
    "segmentation": segmentation,
    "detection": detection,
}


def hyper(config, names: Sequence[str]) -> dict[str, Hyper]:
    """{name: Hyper} by `config.optim.rules`, then the preset's."""
    preset = core.lookup("config.optim.preset", config.preset, PRESETS)
    _require(config, "preset", config.preset)
    rules = [*config.rules, *preset(config, names)]
    try:
        compiled = [(re.compile(regex), Hyper(**dict(said))) for regex, said in rules]
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(
            f"config.optim.rules={config.rules}: {error}; write ((regex, "
            '{"wd": 0.0, "lr_scale": 1.0, "frozen": False}), ...), any of the three.'
        ) from None
    found = {}
    for name in names:
        said = next((said for regex, said in compiled if regex.fullmatch(name)), None)
        if said is None:
            raise ValueError(
                f"no rule of config.optim matches the parameter {name!r}; end "
                'config.optim.rules with (".*", {...}).'
            )
        found[name] = said
    return found


def hyper_trees(config, names: Mapping) -> Hyper:
    """A `Hyper` of trees like the parameters.

    Args:
        names: the parameter tree with each leaf replaced by a tuple of names; a stacked
            leaf has one per layer and gets [depth]-long values.
    """
    leaf = dict(is_leaf=lambda node: isinstance(node, tuple))
    flat = [name for held in jax.tree.leaves(names, **leaf) for name in held]
    found = hyper(config, flat)

    def tree(field):
        def values(held):
            said = {getattr(found[name], field) for name in held}
            if len(said) == 1:
                return said.pop()
            return np.asarray([getattr(found[name], field) for name in held])

        return jax.tree.map(values, names, **leaf)

    return Hyper(*map(tree, Hyper._fields))


def _along(value, like):
    """A per-layer value broadcast to a stacked leaf [depth, ...]."""
    if np.ndim(value) == 0:
        return value
    return jnp.asarray(value).reshape(-1, *(1,) * (like.ndim - 1))


def _decayed(wd) -> optax.GradientTransformation:
    def update(updates, params):
        return jax.tree.map(lambda u, p, d: u + _along(d, p) * p, updates, params, wd)

    return optax.stateless(update)


def _scaled(rate, said) -> optax.GradientTransformationExtraArgs:
    """Times -rate(step) and the rule's scale; a frozen parameter does not move."""

    def update(updates, state, params=None, *, step, **_):
        def scaled(u, scale, frozen):
            return u * _along(-rate(step) * scale, u) * _along(1.0 - frozen, u)

        return jax.tree.map(scaled, updates, said.lr_scale, said.frozen), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def adamw(config, said) -> list:
    """Decoupled decay: the rate, scaled by the rule, multiplies the decay as well."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return [adam, _decayed(said.wd)]


def lars(config, said) -> list:
    """Trust ratio, then momentum, then the rate.

    `optax.lars` has the rate inside the momentum, which differs once the rate moves.
    Vectors are neither decayed nor scaled by a trust ratio.
    """
    trust = optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient)
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    return [
        _decayed(said.wd),
        optax.masked(trust, matrices),
        optax.trace(config.momentum),
    ]


def _refuse_stacks(names):
    leaf = dict(is_leaf=lambda node: isinstance(node, tuple))
    if any(len(held) > 1 for held in jax.tree.leaves(names, **leaf)):
        raise ValueError(
            "config.optim.name=lars takes one trust ratio per parameter, but the "
            "blocks of an encoder are stacked; it serves heads (stage linprobe)."
        )


# What a choice reads besides the keys that every recipe has.
EXTRA = {
    "schedule": {
        "poly": ("power", "warmup_start"),
        "steps": ("milestones", "decay", "warmup_start"),
    },
    "preset": {
        "finetune": ("layer_decay", "decay_dist_token"),
        "segmentation": ("layer_decay", "decay_positions"),
        "detection": ("layer_decay",),
    },
    "name": {
        "adamw": ("b1", "b2", "eps"),
        "lars": ("momentum", "trust_coefficient"),
    },
}


def _require(config, key, value):
    because = f"config.optim.{key}={value}"
    core.require(config, "config.optim", EXTRA[key].get(value, ()), because)


OPTIMISERS = {"adamw": adamw, "lars": lars}


def build(config, names: Mapping, rate: Callable) -> optax.GradientTransformation:
    """The optimiser of `config.optim`; its update takes `step=state.step`.

    Args:
        config: `config.optim`.
        names: tree like the parameters, leaves tuples of PyTorch names.
        rate: step -> learning rate, of `learning_rate`.
    """
    said = hyper_trees(config, names)
    parts = core.lookup("config.optim.name", config.name, OPTIMISERS)
    _require(config, "name", config.name)
    if config.name == "lars":
        _refuse_stacks(names)
    parts = parts(config, said)
    if config.clip:
        parts = [optax.clip_by_global_norm(config.clip), *parts]
    return optax.chain(*parts, _scaled(rate, said))
