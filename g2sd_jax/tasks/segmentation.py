# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation, as fine-tuning and specific distillation share it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import core, errors, label_values, parallel
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order
from g2sd_jax.evaluators import confusion, sliding, splits
from g2sd_jax.losses import cross_entropy
from g2sd_jax.models import layers, upernet, vit
from g2sd_jax.ops import label_maps
from g2sd_jax.tasks import classification, first_batch
from g2sd_jax.weights import (
    agreement,
    graft,
    loading,
    parts,
    resolution,
    segmentor_names,
)

NEEDS = ("init_from", "loss", "inference")
RECIPE = "finetune:task=segmentation"
READS = ("label_map",)

LONGEST = 4  # Times the shorter side: the longer one of a picture, at most.
AUXILIARY_WIDTH = 256  # Channels of the auxiliary head, as published.

# What an encoder's file cannot hold of a segmentor, and what this one has no use for.
AUXILIARY = r"auxiliary_head\..*"
HEADS = (r"decode_head\..*", AUXILIARY, r"backbone\.fpn\d\..*")
OF_BLOCKS = (r".*\.gamma_\d", r".*\.relative_position_bias_table")
UNUSED = (*parts.PRETRAINING_NAMES, r"(fc_)?norm\..*", r"head(_dist)?\..*")
UNUSED += ("dist_token",)


def build(config: ConfigDict) -> core.Task:
    """The segmentation `Task` of `config.model` and `config.data.classes`."""
    if not 1 <= config.data.classes <= label_values.IGNORED:
        raise ValueError(
            f"config.data.classes={config.data.classes}: a label map holds 1 to 255 "
            "classes, numbered from 0; 255 is for pixels that are ignored."
        )
    if config.data.get("labels", "fake") == "" and "teacher" not in config:
        raise ValueError(
            "config.data.labels='' leaves nothing to learn from: without label maps a "
            "segmentor learns of a teacher, in specific_seg."
        )
    errors.one_of("config.loss.divisor", config.loss.divisor, cross_entropy.DIVISORS)
    weight = config.loss.auxiliary
    if weight and not config.model.aux_width:
        raise ValueError(
            f"config.loss.auxiliary={weight} weighs the loss of a head that "
            "config.model.aux_width=0 leaves out; give it channels, or a weight of 0.0."
        )
    model = upernet.segmentor(
        config.model,
        config.data.classes,
        aux=weight > 0,
        **layers.compute_options(config),
    )
    spec, eval_spec = (label_maps.spec(config, train) for train in (True, False))
    eval_split = splits.eval_split(config, READS)

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
        losses = {"decode": loss(outputs.logits)}
        if weight:
            losses["aux"] = weight * loss(outputs.auxiliary)
        return losses

    def predict(variables, frozen, batch):
        image = label_maps.prepare(batch, {}, eval_spec)["image"]
        return {"logits": model.apply(variables, image, False).logits}

    evaluator = confusion.evaluator(
        predict,
        window_batches(eval_split, config),
        config.data.classes,
        answered_label_maps,
        rate_unit="windows",
    )
    return core.Task(
        init=lambda key: upernet.init(model, key),
        draw=draw,
        forward=forward,
        terms=terms,
        augment=lambda batch, draws: label_maps.prepare(batch, draws, spec),
        evaluators={"eval": evaluator},
        warm_start=lambda variables: warm_start(variables, config),
        describe=upernet.describe(config),
        classes=lambda: eval_split().classes,
        reads=READS,
        picture=first_batch.label_map_picture,
        summarise=functools.partial(
            first_batch.label_map_lines, config, evaluation=eval_split
        ),
        indivisible=indivisible(config.loss.divisor),
        # With config.loss.divisor=all it is less, by the share of ignored pixels.
        chance={"decode": classification.chance_of_cross_entropy(config.data.classes)},
    )


def complete(config: ConfigDict) -> None:
    """Sets what is None of the heads by the encoder, of the crops by `image_size`.

    At 512 x 512 and with 12 or 24 blocks these are the published numbers. Without label
    maps the classes are the teacher's.
    """
    size = tuple(config.model.image_size)
    box = (min(size), LONGEST * min(size))
    derived = {
        "augment.fit": box,
        "inference.fit": tuple(config.augment.fit or box),
        "inference.stride": tuple(max(1, 2 * side // 3) for side in size),
    }
    for group in ("model", "teacher.model"):
        model = config.get("teacher", {}).get("model") if "." in group else config.model
        if model is not None and not resolution.wants_file(model):
            encoder = vit.size(model, f"config.{group}")
            derived[f"{group}.taps"] = upernet.taps_of(encoder.depth)
            published = None not in vit.SIZES.get(model.size, (None,))
            width = AUXILIARY_WIDTH if published else encoder.width
            derived[f"{group}.aux_width"] = min(AUXILIARY_WIDTH, width)
    if config.data.classes == 0 and config.data.get("labels") == "":
        set_classes(config)
    flat = errors.flatten(config.to_dict())
    chosen = {k: v for k, v in derived.items() if k in flat and flat[k] is None}
    if not chosen:
        return
    with config.unlocked():
        config.update_from_flattened_dict(chosen)
    listing = ", ".join(f"config.{key}={value}" for key, value in chosen.items())
    parallel.print_once(f"derived from the sizes: {listing}")


def set_classes(config: ConfigDict) -> None:
    """Sets `config.data.classes` to those of the teacher, where there is one."""
    checkpoint = config.get("teacher", {}).get("checkpoint", "")
    if not resolution.named(checkpoint):
        return
    weights = loading.read(checkpoint, "config.teacher.checkpoint")
    weights = rename_weights(
        weights, "teacher", config.teacher.model, "config.teacher.model"
    )
    classes = weights.classes(parts.PIXEL_HEAD) or 0
    with config.unlocked():
        config.data.classes = classes
    parallel.print_once(f"config.data.classes={classes} are those of {checkpoint}")


def indivisible(divisor: str) -> str | None:
    """Why the mean over micro-batches is not the mean over the batch, if it is not."""
    if divisor == "all":
        return None
    return (
        f"config.loss.divisor={divisor} divides by the pixels of the whole batch that "
        "count, which no micro-batch knows"
    )


def warm_start(variables: Mapping, config: ConfigDict) -> Mapping:
    """Grafts a pre-trained encoder, whose heads are fresh, or a complete segmentor."""
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.check_normalisation(weights, config, "config.init_from")
    agreement.check_epsilon(weights, config.model, "config.model")
    weights = rename_weights(weights, "student", config.model, "config.model")
    grid = vit.grid(config.model)
    if has_head(weights):
        unread = () if "auxiliary_head" in variables["params"] else (AUXILIARY,)
        return graft.onto(variables, weights, grid=grid, dropped=unread)
    has_blocks = any(graft.matching([name], OF_BLOCKS) for name in weights.arrays)
    fresh = HEADS if has_blocks else (*HEADS, *OF_BLOCKS)
    return graft.onto(variables, weights, grid=grid, fresh=fresh, dropped=UNUSED)


def rename_weights(
    weights: loading.Weights, who: str, model: ConfigDict, where: str
) -> loading.Weights:
    """The weights of one of a file's segmentors, or of its encoder, by our names.

    Args:
        weights: of a file.
        who: student or teacher, where the file holds both.
        model: the group of the config that describes it.
        where: the group's name, for errors.
    """
    patch = vit.size(model, where).patch
    arrays = segmentor_names.rename(weights.arrays, who, patch)
    return dataclasses.replace(weights, arrays=arrays)


def has_head(weights: loading.Weights) -> bool:
    """Whether a file holds a segmentor and not an encoder alone."""
    return weights.classes(parts.PIXEL_HEAD) is not None


def window_batches(
    dataset: Callable[[], datasets.Dataset], config: ConfigDict
) -> Callable[[], Iterator]:
    """Makes `() -> batches` of the windows of a split, equally many on every host."""
    plan = sliding.plan(config)

    def batches():
        hosts = jax.process_index(), jax.process_count()
        rows = config.batch // hosts[1]
        # Only originals are evaluated.
        originals = dataset()._replace(fetch=lambda indices, epoch=None: {})
        for _, examples in order.eval_batches(originals, config.batch, *hosts):
            # What cannot be read is {}.
            scenes = [sliding.Scene(example, plan) for example in examples if example]
            windows = [(scene, at) for scene in scenes for at in scene.windows]
            mine = dict(rounds=np.int64(-(-len(windows) // rows)))
            everyone = parallel.gather_states(mine)
            for turn in range(int(max(state["rounds"] for state in everyone))):
                chosen = windows[turn * rows : (turn + 1) * rows]
                pixels = [scene.windows[at] for scene, at in chosen]
                yield sliding.padded(pixels, rows, plan, config.model.channels), chosen

    return batches


def answered_label_maps(
    outputs: Mapping, windows: Sequence[tuple[sliding.Scene, tuple]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (answer, truth), label maps [H, W], of every picture that is complete."""
    for logits, (scene, at) in zip(outputs["logits"], windows, strict=False):
        if scene.add(at, logits):
            yield scene.answer(), scene.truth
