# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection with instance masks, as fine-tuning and specific distillation share it."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from g2sd_jax import core
from g2sd_jax.evaluators import coco_ap, splits
from g2sd_jax.losses import detection as losses
from g2sd_jax.models import detector, detector_inference, layers
from g2sd_jax.ops import augment, canvases, instance_masks, proposals
from g2sd_jax.tasks import first_objects
from g2sd_jax.weights import agreement, detector_names, graft, loading, parts

NEEDS = ("init_from", "anchors", "proposals", "regions", "loss", "inference")
RECIPE = "finetune:task=detection"
READS = ("boxes", "labels", "valid_boxes", "masks", "frames", "size")
LONGER = "regions_longer_than_their_window"  # Of a picture, on the mean.
TRAIN, INFERENCE = 0, 1  # Places in `config.proposals.before` and `after`.

# What an encoder's file cannot hold of a detector, and what a detector has no use for.
ADAPTER = r"stu_adapter\..*"
HEADS = (r"(proposal_generator|roi_heads)\..*", r"backbone\.simfp_\d\..*", ADAPTER)
OF_BLOCKS = (r".*\.rel_pos_[hw]",)
OF_CLASSES = (
    r"roi_heads\.box_predictor\..*",
    r"roi_heads\.mask_head\.predictor\..*",
)
UNUSED = (*parts.PRETRAINING_NAMES, r"(fc_)?norm\..*", r"head(_dist)?\..*")
UNUSED += ("cls_token", "dist_token")


class Outputs(NamedTuple):
    """What the losses of a detector, and of its distillation, are computed from."""

    maps: tuple[jax.Array, ...]  # [B, h, w, E] of each level
    logits: tuple[jax.Array, ...]  # [B, N] of each level's anchors
    deltas: jax.Array  # [B, N, 4] of all levels' anchors
    anchors: proposals.Anchors
    regions: proposals.Regions
    class_logits: jax.Array  # [B, R, C + 1]
    box_deltas: jax.Array  # [B, R, C, 4]
    mask_logits: jax.Array  # [B, F, side, side, C], of the first F regions


def build(config: ConfigDict) -> core.Task:
    """The detection `Task` of `config.model` and `config.data.classes`."""
    check(config)
    classes = config.data.classes
    model = detector.detector(
        config.model,
        classes,
        adapter=config.model.adapter,
        **layers.compute_options(config),
    )
    spec = augment.spec(config, train=False)
    eval_split = splits.eval_split(config, READS)
    net = model.backbone.net
    boxes = functools.partial(
        detector.anchor_boxes, model.geometry, net.image_size, net.patch
    )
    most = int(config.regions.count * config.regions.share)

    numbers = settings(config)
    detect = detector_inference.predictor(model, numbers)

    def draw(key, batch):
        keys = core.stream_keys(key, "anchors", "regions", "drop_path")
        count, objects = batch["boxes"].shape[:2]
        anchors = sum(len(level) for level in boxes())
        candidates = proposals.capacity(boxes(), **propose_keys(config))
        shapes = dict(anchors=(anchors,), regions=(candidates + objects,))
        if net.drop_path:
            shapes["drop_path"] = (net.depth, 2)
        return {
            name: jax.random.uniform(keys[name], (count, *shape))
            for name, shape in shapes.items()
        }

    def forward(variables, batch, draws):
        run = functools.partial(model.apply, variables)
        noise = draws.get("drop_path")
        maps = run(batch["image"], noise, method=model.features).maps
        logits, deltas = run(maps, method=model.anchors)
        objects, valid = batch["boxes"], batch["valid_boxes"]
        proposed = proposals.propose(
            logits, deltas, boxes(), batch["size"], **propose_keys(config)
        )
        regions = proposals.sample_regions(
            proposed,
            objects,
            batch["labels"],
            valid,
            draws["regions"],
            classes=classes,
            **config.regions,
        )
        anchors = proposals.sample_anchors(
            jnp.concatenate(boxes()),
            objects,
            valid,
            draws["anchors"],
            **config.anchors,
        )
        class_logits, box_deltas, mask_logits = run(
            maps,
            regions.boxes,
            min(most, regions.boxes.shape[1]),  # Foreground comes first.
            method=model.judge,
        )
        return Outputs(
            maps=maps,
            logits=logits,
            deltas=jnp.concatenate(deltas, axis=1),
            anchors=anchors,
            regions=regions,
            class_logits=class_logits,
            box_deltas=box_deltas,
            mask_logits=mask_logits,
        ), {}

    def terms(outputs, batch):
        group = dict(group=config.loss.group)
        anchors, regions = outputs.anchors, outputs.regions
        first = jax.tree.map(lambda x: x[:, :most], regions)
        count = config.anchors.count
        return {
            "rpn_objectness": losses.rpn_objectness(
                jnp.concatenate(outputs.logits, axis=1),
                anchors.foreground,
                anchors.background,
                count=count,
            ),
            "rpn_boxes": losses.rpn_boxes(
                outputs.deltas,
                jnp.concatenate(boxes()),
                batch["boxes"],
                anchors.index,
                anchors.foreground,
                count=count,
                most=int(count * config.anchors.share),
            ),
            "classes": losses.region_classes(
                outputs.class_logits, regions.label, regions.valid, **group
            ),
            "boxes": losses.region_boxes(
                outputs.box_deltas, regions, batch["boxes"], **group
            ),
            "masks": losses.region_masks(
                outputs.mask_logits,
                first.label,
                mask_targets(batch, first, outputs.mask_logits.shape[2]),
                first.foreground,
                **group,
            ),
        }

    def predict(variables, frozen, batch):
        image = canvases.prepare(batch, spec)["image"]
        size = batch["size"]
        return {**detect(variables, image, size), "size": size}

    def metrics(outputs, batch):
        if model.geometry.roi_align == "exact":
            return {}
        long = detector.leave_windows(
            outputs.regions.boxes, model.geometry, net.image_size, net.patch
        )
        number = (long & outputs.regions.valid).sum(axis=1, dtype=jnp.int32)
        return {LONGER: number.astype(jnp.float32).mean()}

    return core.Task(
        init=lambda key: detector.init(model, key),
        draw=draw,
        forward=forward,
        terms=terms,
        augment=lambda batch, draws: canvases.prepare(batch, spec),
        evaluators={
            "eval": coco_ap.evaluator(
                predict,
                splits.batches_from(eval_split, config),
                classes,
                config.inference.detections,
                config.inference.library,
            )
        },
        warm_start=lambda variables: warm_start(variables, config),
        describe=dict(detector.describe(config), inference=numbers._asdict()),
        classes=lambda: eval_split().classes,
        reads=READS,
        picture=first_objects.object_picture,
        summarise=functools.partial(
            first_objects.object_lines,
            config,
            model.geometry.anchor_sizes,
            evaluation=eval_split,
        ),
        group=config.loss.group,
        metrics=metrics,
    )


def check(config: ConfigDict) -> None:
    """Refuses numbers of which no detector can be trained."""
    if config.data.classes < 1:
        raise ValueError(
            f"config.data.classes={config.data.classes}: a detector needs the number "
            "of classes of its data."
        )
    for key in ("before", "after"):
        if len(config.proposals[key]) != 2 or min(config.proposals[key]) < 1:
            raise ValueError(
                f"config.proposals.{key}={tuple(config.proposals[key])}: give two "
                "numbers, for training and for inference."
            )


def propose_keys(config: ConfigDict) -> dict[str, float]:
    """The numbers of `proposals.propose` in training."""
    return dict(
        before=config.proposals.before[TRAIN],
        after=config.proposals.after[TRAIN],
        threshold=config.proposals.nms,
    )


def mask_targets(batch: Mapping, regions: proposals.Regions, side: int) -> jax.Array:
    """[B, R, side, side] bool: the masks of the objects of regions."""
    cut = functools.partial(instance_masks.targets, side=side)
    return jax.vmap(cut)(batch["masks"], batch["frames"], regions.boxes, regions.index)


def settings(config: ConfigDict) -> detector_inference.Settings:
    """The numbers of inference."""
    keys = config.inference
    return detector_inference.Settings(
        before=config.proposals.before[INFERENCE],
        after=config.proposals.after[INFERENCE],
        nms=config.proposals.nms,
        least=keys.least,
        class_nms=keys.nms,
        count=keys.detections,
        candidates=keys.candidates,
    )


def warm_start(variables: Mapping, config: ConfigDict) -> Mapping:
    """Grafts a pre-trained encoder, whose heads are fresh, or a complete detector.

    The class layers of a detector of another number of classes are fresh.
    """
    if not config.init_from:
        return variables
    weights = loading.read(config.init_from, "config.init_from")
    agreement.check_normalisation(weights, config, "config.init_from")
    agreement.check_heads(weights, config.model, "config.model")
    weights = detector_names.rename_weights(weights)
    grid = tuple(config.model.pretrain_grid)
    if detector_names.has_heads(weights):
        fresh = () if detector_names.has_adapter(weights) else (ADAPTER,)
        if weights.classes(parts.MASK_HEAD) != config.data.classes:
            fresh += OF_CLASSES
        unread = () if config.model.adapter else (ADAPTER,)
        return graft.onto(variables, weights, grid=grid, fresh=fresh, dropped=unread)
    has_blocks = any(graft.matching([name], OF_BLOCKS) for name in weights.arrays)
    fresh = HEADS if has_blocks else (*HEADS, *OF_BLOCKS)
    return graft.onto(variables, weights, grid=grid, fresh=fresh, dropped=UNUSED)
