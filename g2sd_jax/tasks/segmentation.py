# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Naming every pixel: shared by fine-tuning and specific distillation."""

import dataclasses
import functools

import jax
import numpy as np

from g2sd_jax import core, parallel
from g2sd_jax.data import order
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import layers, upernet, vit
from g2sd_jax.ops import label_maps
from g2sd_jax.tasks import classification, confusion, sliding
from g2sd_jax.weights import agreement, graft, loading, segmentors

NEEDS = ("init_from", "loss", "inference")

# What an encoder's file cannot hold of a segmentor, and what this one has no use for.
AUXILIARY = r"auxiliary_head\..*"
HEADS = (r"decode_head\..*", AUXILIARY, r"backbone\.fpn\d\..*")
OF_BLOCKS = (r".*\.gamma_\d", r".*\.relative_position_bias_table")
UNUSED = (*classification.PRETRAINING, r"(fc_)?norm\..*", r"head(_dist)?\..*")
UNUSED += ("dist_token",)


def build(config) -> core.Task:
    """The segmentation `Task` of `config.model` and `config.data.classes`."""
    if not 1 <= config.data.classes <= cross_entropy.IGNORED:
        raise ValueError(
            f"config.data.classes={config.data.classes}: a label map holds 1 to 255 "
            "classes, numbered from 0; 255 is for pixels that are ignored."
        )
    core.one_of("config.loss.divisor", config.loss.divisor, cross_entropy.DIVISORS)
    weight = config.loss.auxiliary
    if weight and not config.model.aux_width:
        raise ValueError(
            f"config.loss.auxiliary={weight} weighs the loss of a head that "
            "config.model.aux_width=0 leaves out; give it channels, or a weight of 0.0."
        )
    machine = layers.machine(config)
    model = upernet.segmentor(
        config.model, config.data.classes, aux=weight > 0, **machine
    )
    spec, plain = (label_maps.spec(config, train) for train in (True, False))

    def draw(key, batch):
        keys = core.stream_keys(key, "augment", "drop_path", "dropout", "aux_dropout")
        draws = label_maps.draw(keys["augment"], batch, spec)
        shapes = dict(drop_path=(config.model.drop_path, model.backbone.depth, 2))
        shapes["dropout"] = (config.model.dropout, model.decode_head.width)
        if model.auxiliary_head:
            shapes["aux_dropout"] = (config.model.dropout, model.auxiliary_head.width)
        for name, (rate, *shape) in shapes.items():
            if rate:
                shape = (len(batch["image"]), *shape)
                draws[name] = jax.random.uniform(keys[name], shape)
        return draws

    def forward(variables, batch, draws):
        if len(batch["image"]) < 2:
            raise ValueError(
                f"config.batch={config.batch} in config.accumulate={config.accumulate} "
                "parts: one picture pooled to one value has no batch statistics; use "
                "at least 2 pictures in each part."
            )
        return model.apply(
            variables, batch["image"], True, draws, mutable=["batch_stats"]
        )

    def terms(outputs, batch):
        loss = functools.partial(
            cross_entropy.pixels,
            label_map=batch["label_map"],
            divisor=config.loss.divisor,
        )
        found = {"decode": loss(outputs.logits)}
        if weight:
            found["aux"] = weight * loss(outputs.auxiliary)
        return found

    def predict(variables, frozen, batch):
        image = label_maps.prepare(batch, {}, plain)["image"]
        return {"logits": model.apply(variables, image, False).logits}

    held_out = classification.eval_split(config)
    evaluator = confusion.evaluator(
        predict, windows_of(held_out, config), config.data.classes, answers
    )
    return core.Task(
        init=lambda key, batch: upernet.init(model, key),
        draw=draw,
        forward=forward,
        terms=terms,
        augment=lambda batch, draws: label_maps.prepare(batch, draws, spec),
        evaluators={"eval": evaluator},
        warm_start=lambda variables: warm_start(variables, config),
        describe=upernet.describe(config),
        classes=lambda: held_out().classes,
    )


def warm_start(variables, config):
    """Grafts a pre-trained encoder, whose heads are fresh, or a whole segmentor."""
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.pictures(weights, config, "config.init_from")
    weights = renamed(weights, "student", config.model, "config.model")
    grid = vit.grid(config.model)
    if has_head(weights):
        unread = () if "auxiliary_head" in variables["params"] else (AUXILIARY,)
        return graft.onto(variables, weights, grid=grid, dropped=unread)
    held = [name for name in weights.arrays if graft.matching([name], OF_BLOCKS)]
    fresh = HEADS if held else (*HEADS, *OF_BLOCKS)
    return graft.onto(variables, weights, grid=grid, fresh=fresh, dropped=UNUSED)


def renamed(weights, who: str, model, where: str) -> loading.Weights:
    """The weights of one of a file's segmentors, or of its encoder, by our names."""
    patch = vit.size(model, where).patch
    arrays = segmentors.rename(weights.arrays, who, patch)
    return dataclasses.replace(weights, arrays=arrays)


def has_head(weights: loading.Weights) -> bool:
    return f"{loading.CONV_SEG}.weight" in weights.arrays


def windows_of(dataset, config):
    """() -> batches of windows of `dataset()`, equally many on every host."""
    plan = sliding.plan(config)

    def batches():
        hosts = jax.process_index(), jax.process_count()
        rows = config.batch // hosts[1]
        # Only originals are judged.
        judged = dataset()._replace(fetch=lambda indices, epoch=None: {})
        for _, examples in order.eval_batches(judged, config.batch, *hosts):
            # What cannot be read is {}.
            scenes = [sliding.Scene(example, plan) for example in examples if example]
            windows = [(scene, at) for scene in scenes for at in scene.windows]
            mine = dict(rounds=np.int64(-(-len(windows) // rows)))
            everyone = parallel.gather_states(mine)
            for turn in range(int(max(state["rounds"] for state in everyone))):
                held = windows[turn * rows : (turn + 1) * rows]
                pixels = [scene.windows[at] for scene, at in held]
                yield sliding.padded(pixels, rows, plan, config.model.channels), held

    return batches


def answers(outputs, windows):
    """(answer, truth) of every picture whose last window is among these."""
    for logits, (scene, at) in zip(outputs["logits"], windows, strict=False):
        if scene.add(at, logits):
            yield scene.answer(), scene.truth
