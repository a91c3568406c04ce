# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules, and AdamW and LARS with per-parameter rules.

Rules are written on PyTorch-style names, so that a published parameter group can be
read off its paper: `((regex, {"wd": 0.0, "lr_scale": 0.5, "frozen": True}), ...)`. The
first rule whose regex matches the whole name wins, and every parameter must match.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from g2sd_jax import errors

Rules = tuple[tuple[str, Mapping[str, float | bool]], ...]


class Hyper(NamedTuple):
    """Hyperparameters of one parameter, or trees of them like the parameters."""

    wd: float = 0.0
    lr_scale: float = 1.0
    frozen: bool = False


def cosine(config: ConfigDict, epoch: jax.Array, epochs: float) -> jax.Array:
    """Half a cosine from lr to min_lr, from the warm-up's end to the last epoch."""
    done = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    wave = 0.5 * (1 + jnp.cos(jnp.pi * done))
    return config.min_lr + (config.lr - config.min_lr) * wave


def poly(config: ConfigDict, epoch: jax.Array, epochs: float) -> jax.Array:
    """(lr - min_lr) (1 - done)^power + min_lr, as mmsegmentation has it.

    A warm-up multiplies it.
    """
    left = (1 - epoch / epochs) ** config.power
    return (config.lr - config.min_lr) * left + config.min_lr


def steps(config: ConfigDict, epoch: jax.Array, epochs: float) -> jax.Array:
    """Multiplies by `decay` after each share of the run in `milestones`."""
    # A little early, as float32 meets a share such as 163,889 / 184,375 within 2e-7
    # only; a step is longer than that in runs of up to a million steps.
    passed = sum((epoch / epochs >= share - 5e-7) for share in config.milestones)
    return config.lr * config.decay**passed


SCHEDULES = {"cosine": cosine, "poly": poly, "steps": steps}


def learning_rate(
    config: ConfigDict, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
    """Builds the schedule of `config.optim`, before any rule's `lr_scale`.

    Cosine warms up from 0 to `lr` (so the first update has rate 0, as published); the
    others multiply the schedule by a line from `warmup_start` to 1.
    """
    schedule = errors.lookup("config.optim.schedule", config.schedule, SCHEDULES)
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


VECTORS = r".*(\.bias|[qv]_bias|gamma_\d|(^|\.)(\w*norm|bn)\w*\.weight)"


def depth_of(names: Sequence[str]) -> int:
    """Counts the encoder blocks among the names, wherever the encoder sits."""
    numbers = [
        re.fullmatch(r"(?:.*\.)?(?<!decoder_)blocks\.(\d+)\..*", n) for n in names
    ]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def pretrain(config: ConfigDict, names: Sequence[str]) -> Rules:
    """MAE and stage 1: no decay of biases and norms; class and mask token decay."""
    return ((VECTORS, dict(wd=0.0)), (".*", dict(wd=config.wd)))


def finetune(config: ConfigDict, names: Sequence[str]) -> Rules:
    """BEiT's layer decay: lr_scale = gamma^(depth + 1 - id) (method, section 10)."""
    spared = "cls_token|pos_embed|reg_token|latent"
    if not config.decay_dist_token:
        spared += "|dist_token"
    return _layer_decay(config, names, f"(.*\\.)?({spared})|{VECTORS}")


def linprobe(config: ConfigDict, names: Sequence[str]) -> Rules:
    """One linear layer: decay (0 as published) for its weight, none for its bias."""
    return pretrain(config, names)


def segmentation(config: ConfigDict, names: Sequence[str]) -> Rules:
    """UperNet: layer decay on the backbone; tokens and position tables do decay."""
    spared = f"{VECTORS}|.*\\.gamma_\\d|.*fpn1\\.1\\.weight"  # All the vectors.
    if not config.decay_positions:
        # The published list of these holds bare names, which the prefixed never match.
        spared += r"|.*\.(cls_token|pos_embed|relative_position_bias_table)"
    return _layer_decay(config, names, spared)


def detection(config: ConfigDict, names: Sequence[str]) -> Rules:
    """ViTDet: only block norms and the absolute positions are spared the decay."""
    spared = r"(.*\.)?pos_embed|.*\.?blocks\.\d+\.norm\d\.(weight|bias)"
    return _layer_decay(config, names, spared)


def _layer_decay(config, names, spared):
    depth = depth_of(names)
    ids = [(r"(.*\.)?(cls_token|reg_token|pos_embed|patch_embed\..*|norm_pre\..*)", 0)]
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


def hyper(config: ConfigDict, names: Sequence[str]) -> dict[str, Hyper]:
    """Finds the `Hyper` of each name by `config.optim.rules`, then the preset's."""
    preset = errors.lookup("config.optim.preset", config.preset, PRESETS)
    _require(config, "preset", config.preset)
    rules = [*config.rules, *preset(config, names)]
    try:
        compiled = [(re.compile(regex), Hyper(**dict(rule))) for regex, rule in rules]
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(
            f"config.optim.rules={config.rules}: {error}; write ((regex, "
            '{"wd": 0.0, "lr_scale": 1.0, "frozen": False}), ...), any of the three.'
        ) from None
    hypers = {}
    for name in names:
        matches = (rule for regex, rule in compiled if regex.fullmatch(name))
        hypers[name] = next(matches, None)
        if hypers[name] is None:
            raise ValueError(
                f"no rule of config.optim matches the parameter {name!r}; end "
                'config.optim.rules with (".*", {...}).'
            )
    return hypers


def hyper_trees(config: ConfigDict, names: Mapping) -> Hyper:
    """Builds a `Hyper` of trees like the parameters.

    Args:
        config: `config.optim`.
        names: the parameter tree with each leaf replaced by a tuple of names; a stacked
            leaf has one per layer and gets [depth]-long values.
    """
    leaf = dict(is_leaf=lambda node: isinstance(node, tuple))
    flat = [name for stacked in jax.tree.leaves(names, **leaf) for name in stacked]
    hypers = hyper(config, flat)

    def tree(field):
        def leaf_values(stacked):
            values = [getattr(hypers[name], field) for name in stacked]
            return values[0] if len(set(values)) == 1 else np.asarray(values)

        return jax.tree.map(leaf_values, names, **leaf)

    return Hyper(*map(tree, Hyper._fields))


def _along(value, like):
    """Broadcasts a per-layer value to a stacked leaf [depth, ...]."""
    if np.ndim(value) == 0:
        return value
    return jnp.asarray(value).reshape(-1, *(1,) * (like.ndim - 1))


def _decayed(wd) -> optax.GradientTransformation:
    def update(updates, params):
        return jax.tree.map(lambda u, p, d: u + _along(d, p) * p, updates, params, wd)

    return optax.stateless(update)


def _scaled(rate, hyperparameters) -> optax.GradientTransformationExtraArgs:
    """Multiplies by -rate(step) and the rule's scale; frozen parameters do not move."""

    def update(updates, state, params=None, *, step, **_):
        def scaled(u, scale, frozen):
            return u * _along(-rate(step) * scale, u) * _along(1.0 - frozen, u)

        return jax.tree.map(
            scaled, updates, hyperparameters.lr_scale, hyperparameters.frozen
        ), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def adamw(
    config: ConfigDict, hyperparameters: Hyper
) -> list[optax.GradientTransformation]:
    """Decoupled decay: the rate, scaled by the rule, multiplies the decay as well."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return [adam, _decayed(hyperparameters.wd)]


def lars(
    config: ConfigDict, hyperparameters: Hyper
) -> list[optax.GradientTransformation]:
    """Trust ratio, then momentum, then the rate.

    `optax.lars` has the rate inside the momentum, which differs once the rate moves.
    Vectors are neither decayed nor scaled by a trust ratio.
    """
    trust = optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient)
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    return [
        _decayed(hyperparameters.wd),
        optax.masked(trust, matrices),
        optax.trace(config.momentum),
    ]


def _refuse_stacks(names):
    leaf = dict(is_leaf=lambda node: isinstance(node, tuple))
    if any(len(stacked) > 1 for stacked in jax.tree.leaves(names, **leaf)):
        raise ValueError(
            "config.optim.name=lars takes one trust ratio per parameter, but the "
            "blocks of an encoder are stacked; it serves heads (stage linprobe)."
        )


# The keys that a choice reads besides those that every recipe has.
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
    errors.require(config, "config.optim", EXTRA[key].get(value, ()), because)


OPTIMISERS = {"adamw": adamw, "lars": lars}


def build(
    config: ConfigDict, names: Mapping, rate: optax.Schedule
) -> optax.GradientTransformation:
    """Builds the optimiser of `config.optim`; its update takes `step=state.step`.

    Args:
        config: `config.optim`.
        names: tree like the parameters, leaves tuples of PyTorch names.
        rate: of `learning_rate`.
    """
    hyperparameters = hyper_trees(config, names)
    parts = errors.lookup("config.optim.name", config.name, OPTIMISERS)
    _require(config, "name", config.name)
    if config.name == "lars":
        _refuse_stacks(names)
    parts = parts(config, hyperparameters)
    if config.clip:
        parts = [optax.clip_by_global_norm(config.clip), *parts]
    return optax.chain(*parts, _scaled(rate, hyperparameters))
