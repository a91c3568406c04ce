# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection against the authors' PyTorch code, every size from the golden file."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

import golden_files
from g2sd_jax import optim, recipes, stages, tasks
from g2sd_jax.data.coco import annotations as coco_json
from g2sd_jax.data.coco import instances as annotations
from g2sd_jax.data.coco import jitter, run_lengths
from g2sd_jax.data.coco import source as coco
from g2sd_jax.evaluators import coco_ap, instances
from g2sd_jax.losses import detection as losses
from g2sd_jax.losses import detector_distill
from g2sd_jax.models import detector, layers, roi_heads, vitdet
from g2sd_jax.ops import (
    anchors,
    boxes,
    detections,
    instance_masks,
    matching,
    nms,
    proposals,
    resize,
    roi_align,
    windows,
)
from g2sd_jax.stages import finetune, specific_det
from g2sd_jax.tasks import detection
from g2sd_jax.weights import graft, loading, torch_names
from golden_files import setting, under

load = functools.partial(golden_files.load, folder="detection")


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def numbers(pattern, names):
    """The integers of the pattern's groups in every name that it matches in full."""
    matches = (re.fullmatch(pattern, name) for name in names)
    return sorted({tuple(map(int, match.groups())) for match in matches if match})


def near(got, wanted, what, bound):
    """Asserts that no element is off by more than `bound`."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"{what}: {got.shape}, wanted {wanted.shape}"
    worst = np.abs(got - wanted).max(initial=0)
    assert worst <= bound, f"{what}: off by {worst:.3g}"


def few_differ(got, wanted, what, most=0.001):
    """Asserts that two binary arrays differ in at most a share of `most`."""
    got, wanted = np.asarray(got, bool), np.asarray(wanted, bool)
    assert got.shape == wanted.shape, f"{what}: {got.shape}, wanted {wanted.shape}"
    assert (got != wanted).mean() <= most, f"{what}: {(got != wanted).mean():.3%}"


# Boxes.


def test_box_coding():
    golden = load("box_coding")
    source, target = golden["input/src"], golden["input/target"]
    for name in under(golden, "output"):
        match = re.fullmatch(r"(encode|decode\d+)_(\d+)", name)
        if not match:
            continue
        weights = {"1111": (1, 1, 1, 1), "101055": (10, 10, 5, 5)}[match[2]]
        wanted = golden[f"output/{name}"]
        if match[1] == "encode":
            got = boxes.encode(source, target, weights)
            near(got, wanted, name, 1e-4)
            continue
        deltas = golden[f"input/{match[1].replace('decode', 'deltas')}"]
        deltas = deltas.reshape(len(deltas), -1, 4)
        got = boxes.decode(source[:, None], deltas, weights)
        golden_files.agree(got.reshape(wanted.shape), wanted, name, 1e-5)
    [(height, width)] = numbers(r"clipped_(\d+)x(\d+)", under(golden, "output"))
    clipped = boxes.clip(golden["input/clip_boxes"], np.array([height, width]))
    near(clipped, golden[f"output/clipped_{height}x{width}"], "clipped", 1e-5)
    full = boxes.nonempty(clipped)
    np.testing.assert_array_equal(full, golden["output/clipped_nonempty"])


def test_anchors_1024():
    golden = load("anchors_1024")
    output, side, ratios = under(golden, "output"), 1024, (0.5, 1.0, 2.0)
    levels = [level for (level,) in numbers(r"cell_p(\d+)", output)]
    for level in levels:
        cells = output[f"cell_p{level}"]
        width, height = (cells[:, 2:] - cells[:, :2]).T
        near(height / width, ratios, f"ratios of level {level}", 1e-5)
        size = float(np.sqrt(width * height).mean().round())
        near(anchors.cell(size, ratios), cells, f"cells of level {level}", 1e-4)
        grid = (side // 2**level,) * 2
        got = np.asarray(anchors.level(grid, 2**level, size, ratios))
        assert len(got) == output[f"count_p{level}"]
        index = golden[f"input/index_p{level}"]
        near(got[index], output[f"anchors_at_index_p{level}"], f"level {level}", 1e-3)
        if f"anchors_p{level}_full" in output:
            near(got, output[f"anchors_p{level}_full"], f"all of {level}", 1e-3)


def test_nms():
    golden = load("nms")
    order = np.argsort(-golden["input/scores"], kind="stable")
    for name, wanted in under(golden, "output").items():
        kind, threshold = re.fullmatch(r"keep_(single|batched)_([\d.]+)", name).groups()
        groups = golden["input/class_or_level"][order] if kind == "batched" else None
        kept = jax.jit(nms.keep, static_argnums=2)(
            golden["input/boxes"][order],
            np.ones(len(order), bool),
            float(threshold),
            groups,
        )
        np.testing.assert_array_equal(order[np.asarray(kept)], wanted, name)


RULES = {  # low, high, low quality
    "rpn": (0.3, 0.7, True),
    "roi": (0.5, 0.5, False),
    "rpn_no_low": (0.3, 0.7, False),
}


def test_matcher():
    golden = load("matcher")
    objects, candidates = golden["input/gt_boxes"], golden["input/boxes"]
    wanted = under(golden, "output")
    near(boxes.iou(objects, candidates), wanted["iou"], "iou", 1e-6)
    match = jax.jit(matching.match, static_argnames=("low", "high", "low_quality"))

    def matched(rule, valid):
        low, high, low_quality = RULES[rule]
        found = match(
            candidates, objects, valid, low=low, high=high, low_quality=low_quality
        )
        return np.asarray(found.label), np.asarray(found.index)

    everything = np.ones(len(objects), bool)
    overlaps = wanted["iou"].max(axis=1) > 0
    for rule in RULES:
        label, index = matched(rule, everything)
        np.testing.assert_array_equal(index, wanted[f"{rule}_matched_gt"], rule)
        if RULES[rule][2] and not overlaps.all():
            # Every box without overlap equals the largest overlap of such an object.
            label = np.where(wanted["iou"].min(axis=1)[~overlaps].any(), label, 1)
        np.testing.assert_array_equal(label, wanted[f"{rule}_labels"], rule)
    [(row,)] = numbers(r"rpn_without_gt(\d+)_labels", wanted)
    assert not overlaps[row]
    rest = np.arange(len(objects)) != row
    for valid in (rest, everything):
        label, index = matched("rpn", valid)
        np.testing.assert_array_equal(label, wanted[f"rpn_without_gt{row}_labels"])
    label, index = matched("rpn", rest)
    renumbered = index - (index > row)
    np.testing.assert_array_equal(renumbered, wanted[f"rpn_without_gt{row}_matched_gt"])
    label, index = matched("rpn", ~everything)
    count = len(wanted["rpn_nogt_labels"])
    np.testing.assert_array_equal(label[:count], wanted["rpn_nogt_labels"])
    np.testing.assert_array_equal(index[:count], wanted["rpn_nogt_matched_gt"])
    assert not label.any()


# ROIAlign.


def test_roi_align():
    golden = load("roi_align")
    feature = jnp.asarray(nhwc(golden["input/feature"]))
    rois, stride = golden["input/rois"], round(1 / setting(golden, "spatial_scale"))
    pictures = rois[:, 0].astype(int)
    # Every box is pooled from every picture, and its own is looked at.
    everywhere = jnp.asarray(np.repeat(rois[None, :, 1:], len(feature), axis=0))
    level = jnp.zeros(everywhere.shape[:2], jnp.int32)
    pool = jax.jit(
        roi_align.pool, static_argnames=("strides", "bins", "samples", "chunk")
    )
    for bins, samples in numbers(r"out(\d+)_ratio(\d+)", under(golden, "output")):
        name = f"out{bins}_ratio{samples}"
        for chunk in (len(rois), len(rois) // 2):
            got = pool(
                (feature,),
                everywhere,
                level,
                strides=(stride,),
                bins=bins,
                samples=samples,
                chunk=chunk,
            )
            got = np.asarray(got)[pictures, np.arange(len(rois))]
            near(got, nhwc(golden[f"output/{name}"]), name, 1e-4)


def test_roi_pooler():
    golden = load("roi_pooler")
    levels = [level for (level,) in numbers(r"feature_p(\d+)", under(golden, "input"))]
    maps = tuple(jnp.asarray(nhwc(golden[f"input/feature_p{k}"])) for k in levels)
    pictures = [k for (k,) in numbers(r"boxes_image(\d+)", under(golden, "input"))]
    rois = jnp.stack([golden[f"input/boxes_image{k}"] for k in pictures])
    [(canonical,)] = numbers(r"levels_canonical(\d+)", under(golden, "output"))
    level = jax.jit(roi_align.level_of, static_argnames=LEVEL_KEYS)(
        rois,
        canonical_size=canonical,
        canonical_level=4,
        lowest=levels[0],
        highest=levels[-1],
    )
    wanted = golden[f"output/levels_canonical{canonical}"]
    np.testing.assert_array_equal(level.reshape(-1), wanted)
    pool = jax.jit(roi_align.pool, static_argnames=("strides", "bins", "samples"))
    strides = tuple(2**level for level in levels)
    for bins, samples in numbers(r"pooled(\d+)_ratio(\d+)", under(golden, "output")):
        got = pool(maps, rois, level, strides=strides, bins=bins, samples=samples)
        name = f"pooled{bins}_ratio{samples}"
        wanted = nhwc(golden[f"output/{name}"])
        near(got.reshape(wanted.shape), wanted, name, 1e-4)


LEVEL_KEYS = ("canonical_size", "canonical_level", "lowest", "highest")


# Masks.


def test_masks():
    golden = load("masks")
    size = tuple(golden["config/paste_image_hw"].tolist())
    pasted = instance_masks.paste(
        golden["input/paste_masks"], golden["input/paste_boxes"], size
    )
    near(pasted, golden["output/pasted_soft"], "pasted_soft", 1e-4)
    few_differ(pasted >= 0.5, golden["output/pasted"], "pasted")
    bitmasks = golden["input/bitmasks"]
    got = targets_of(bitmasks, golden["input/boxes"], golden["input/instance_of_box"])
    few_differ(got, golden["output/bitmask_targets28"], "bitmask_targets28")


def polygons_of(golden, prefix):
    """The polygons [k, 2] of every instance, in order."""
    names = under(golden, "input")
    places = numbers(rf"polygon_{prefix}inst(\d+)_part(\d+)", names)
    polygons = [[] for _ in {instance for instance, _ in places}]
    for instance, part in places:
        flat = names[f"polygon_{prefix}inst{instance}_part{part}"]
        polygons[instance].append(flat.reshape(-1, 2))
    return polygons


def test_masks_of_polygons():
    golden = load("masks")
    polygons, index = polygons_of(golden, ""), golden["input/instance_of_box"]
    rois, wanted = golden["input/boxes"], golden["output/polygon_targets28"]
    frames = np.stack([annotations.bounds(each) for each in polygons])
    near(frames, golden["output/polygon_bounding_boxes"], "bounding boxes", 1e-4)
    side = wanted.shape[-1]
    drawn = [
        annotations.in_frame(polygons[i], roi, side)
        for i, roi in zip(index, rois, strict=True)
    ]
    few_differ(drawn, wanted, "polygon_targets28")
    # In the frames of a batch, resampled as in the step.
    config = recipes.load("finetune:task=detection")
    masks = [
        annotations.in_frame(each, frame, config.data.mask_size)
        for each, frame in zip(polygons, frames, strict=True)
    ]
    make = jax.jit(instance_masks.targets, static_argnums=4)
    got = make(np.stack(masks), np.float32(frames), rois, index, side)
    few_differ(got, wanted, "in frames", 0.005)
    for number, bitmask in enumerate(golden["input/bitmasks"]):
        got = annotations.tight_box(bitmask, (0, 0))
        wanted = golden["output/bitmask_bounding_boxes"][number]
        np.testing.assert_array_equal(got, wanted)


def targets_of(bitmasks, rois, index, side=28):
    """Targets from masks of all of a picture."""
    count, height, width = bitmasks.shape
    frames = np.tile(np.array([0, 0, width, height], np.float32), (count, 1))
    make = jax.jit(instance_masks.targets, static_argnums=4)
    return np.asarray(make(bitmasks.astype(np.uint8), frames, rois, index, side))


# The pictures and annotations of COCO.

PUBLISHED = ConfigDict(dict(flip=0.5, scale=(0.1, 2.0)))
M, SIDE = 112, 28  # Samples of a mask's side, and of a target's.
AT_ONCE = 64  # Boxes of a compiled program.
JITTER = 0.1  # Of a side, by which the edges of a box are moved.


def parts_of(arrays, prefix):
    """The polygons [k, 2] of one object, by the names that the files give them."""
    parts = []
    while f"{prefix}{len(parts)}" in arrays:
        parts.append(arrays[f"{prefix}{len(parts)}"].reshape(-1, 2))
    return parts


def as_instance(parts, label=0):
    return coco_json.Instance(label, (0.0, 0.0, 1.0, 1.0), 1.0, False, tuple(parts))


def test_lsj():
    golden = load("lsj")
    geometry = golden["output/geometry_newh_neww_y0_x0_outh_outw"]
    canvas = largest(geometry[:, -2:])
    for (height, width, scale, offset), wanted in zip(
        golden["f64/geometry_in_h_w_uscale_uoffset"],
        geometry.tolist(),
        strict=True,
    ):
        view = jitter.training_view(
            (int(height), int(width)),
            canvas,
            jitter.Draws(1.0, scale, offset),
            PUBLISHED,
        )
        assert [*view.resized, *view.corner, *view.shown] == wanted
    resized = {
        name.removeprefix("test_resize_"): size
        for name, size in under(golden, "output").items()
        if name.startswith("test_resize_")
    }
    canvas = largest(*resized.values())
    for name, wanted in resized.items():
        view = jitter.evaluation_view(tuple(map(int, name.split("x"))), canvas)
        assert list(view.resized) == wanted.tolist(), name
    cases = sorted({key.split("/")[0] for key in golden if key.startswith("case")})
    canvas = largest(*(golden[f"{case}/output_image_size"] for case in cases))
    for case in cases:
        check_case(under(golden, case), canvas, case)


def largest(*sizes):
    """The square canvas that the largest of all sides fills; no file names it."""
    side = max(int(np.max(size)) for size in sizes)
    return side, side


def check_case(golden, canvas, case):
    """One picture through the complete training pipeline."""
    image = golden["input_image"]
    draws = jitter.Draws(*golden["f64_draws_flip_scale_offset"])
    view = jitter.training_view(image.shape[:2], canvas, draws, PUBLISHED)
    resized = jitter.resize(image, view)
    wanted = np.moveaxis(golden["output_image"], 0, -1)
    np.testing.assert_array_equal(resized, wanted, case)
    objects, number = [], 0
    while f"input_anno{number}_iscrowd" in golden:
        prefix = f"input_anno{number}_"
        if not golden[f"{prefix}iscrowd"]:
            parts = parts_of(golden, f"{prefix}polygon")
            objects.append(as_instance(parts, int(golden[f"{prefix}category"])))
        number += 1
    shown = annotations.show(objects, view, M)
    labels = [objects[row].label for row in shown.rows]
    assert labels == golden["output_classes"].tolist(), case
    np.testing.assert_allclose(shown.boxes, golden["output_boxes"], atol=1e-4)
    clipped = annotations.clip([each.polygons for each in objects], view)
    for place, row in enumerate(shown.rows):
        ours, theirs = (
            run_lengths.decode(run_lengths.from_polygons(parts, view.shown))
            for parts in (
                clipped[row],
                parts_of(golden, f"output_inst{place}_polygon"),
            )
        )
        np.testing.assert_array_equal(ours, theirs, f"{case}: object {place}")


def test_masks_of_photographs_in_frames():
    """COCO's own polygons, with boxes as a network proposes them."""
    folder = golden_files.root().parent / "data" / "coco_open"
    paths = sorted(folder.glob("instances_*.json"))
    if not paths:
        pytest.skip(f"no json in {folder}; set G2SD_GOLDEN_DIR to a folder beside data")
    rng, outlines, rois, wanted = np.random.default_rng(0), [], [], []
    for image in [image for path in paths for image in coco_json.read(path).images]:
        for each in image.objects:
            if each.rle is not None:
                continue
            box = annotations.bounds(each.polygons)
            if (box[2:] - box[:2]).min() < 1:
                continue
            moved = rng.uniform(-JITTER, JITTER, 4) * np.tile(box[2:] - box[:2], 2)
            box = np.clip(box + moved, 0, np.tile(image.size[::-1], 2))
            box = box.astype(np.float32)
            outlines.append(each.polygons)
            rois.append(box)
            wanted.append(annotations.in_frame(each.polygons, np.float64(box), SIDE))
    assert len(wanted) > 1000
    make = jax.jit(instance_masks.targets, static_argnums=4)
    frames = np.array([annotations.bounds(parts) for parts in outlines], np.float32)
    masks = np.array(
        [annotations.in_frame(*each, M) for each in zip(outlines, frames, strict=True)]
    )
    got = []
    for first in range(0, len(rois), AT_ONCE):  # Of one shape, to be compiled once.
        at = np.arange(first, first + AT_ONCE).clip(max=len(rois) - 1)
        index = np.arange(AT_ONCE)
        got.append(make(masks[at], frames[at], np.array(rois)[at], index, SIDE))
    got = np.concatenate(got)[: len(rois)]
    few_differ(got, wanted, "photographs in frames", 0.01)


@pytest.mark.parametrize("library", coco_ap.LIBRARIES)
def test_coco(library):
    """Every figure of pycocotools, and those by category, from its own files."""
    if library == "faster":
        pytest.importorskip("faster_coco_eval")
    files = {
        name: golden_files.path(f"coco_{name}.json", "detection")
        for name in ("gt", "detections", "expected")
    }
    annotations = coco_json.read(files["gt"])
    found, expected = (
        json.loads(files[name].read_text()) for name in ("detections", "expected")
    )
    states = [dict(coco_ap.EMPTY)]
    for image in annotations.images:
        mine = [each for each in found if each["image_id"] == image.id]
        boxes = np.array([each["bbox"] for each in mine], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        answer = instances.Instances(
            labels=np.array(
                [annotations.category_ids.index(each["category_id"]) for each in mine]
            ),
            scores=np.array([each["score"] for each in mine]),
            boxes=boxes,
            masks=[run_lengths.compress(each["segmentation"]) for each in mine],
        )
        states.append(coco_ap.as_state(coco.original(image), answer))
    judge = coco_ap.evaluator(
        None, None, len(annotations.category_ids), library=library
    )
    state = judge.merge(states)
    metrics = judge.finish(state)
    [table] = judge.tables(state, annotations.category_ids)
    for prefix, task in coco_ap.TASKS.items():
        wanted = dict(expected[task])
        by_category = wanted.pop("per_category_AP")
        for name, value in wanted.items():
            value = np.nan if value == -1 else 100 * value
            got = metrics[f"{prefix}_{name}"]
            np.testing.assert_allclose(got, value, atol=1e-4, err_msg=name)
        for row in table.rows:
            value = by_category[row["name"]]
            got = row[f"{prefix}_AP"]
            assert got == pytest.approx(100 * value, abs=1e-4) or (got, value) == (
                None,
                -1,
            )


# The backbone.


def test_rel_pos_attention():
    golden = load("rel_pos_attention")
    output, heads = under(golden, "output"), setting(golden, "num_heads")
    side = setting(golden, "input_size")
    attention = vitdet.WindowAttention(heads, window=0)
    tree = attention.init(
        jax.random.key(0), jnp.zeros((1, side, side, setting(golden, "dim")))
    )
    variables = graft.onto(tree, weights_of(golden), grid=(1, 1))
    apply = jax.jit(attention.apply)
    for height, width in numbers(r"y_(\d+)x(\d+)", output):
        name = f"{height}x{width}"
        if (height, width) != (side, side):
            # The module's tables are those of its own grid; others are interpolated.
            got = interpolated(golden, golden[f"input/x_{name}"])
        else:
            got = apply(variables, golden[f"input/x_{name}"])
        near(got, output[f"y_{name}"], name, 1e-4)
    for queries, keys, length in numbers(r"relpos_q(\d+)_k(\d+)_L(\d+)", output):
        name = f"relpos_q{queries}_k{keys}_L{length}"
        got = windows.positions(golden[f"input/{name}"], queries, keys)
        near(got, output[name], name, 1e-5)
    for old, height, width in numbers(r"abspos_(\d+)_to_(\d+)x(\d+)", output):
        name = f"abspos_{old}_to_{height}x{width}"
        table = jnp.asarray(golden[f"input/{name}"])
        got = resize.resize_pos_embed(table, (old, old), (height, width))
        got = got[:, 1:].reshape(1, height, width, -1)
        near(got, output[name], name, 1e-5)
    for height, width, side in numbers(r"win_(\d+)x(\d+)_w(\d+)", output):
        name = f"{height}x{width}_w{side}"
        x = golden[f"input/win_{name}"]
        cut = windows.partition(x, side)
        np.testing.assert_array_equal(cut, output[f"win_{name}"])
        np.testing.assert_array_equal(windows.merge(cut, (height, width)), x)
        padded = windows.padded_sides((height, width), side)
        np.testing.assert_array_equal(padded, output[f"winpad_{name}"])


def interpolated(golden, x):
    """The layer of the file on another grid, by the function that the module calls."""
    arrays = under(golden, "param")
    linear = lambda x, name: x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
    shape = (*x.shape[:3], 3, setting(golden, "num_heads"), -1)
    q, k, v = np.moveaxis(linear(x, "qkv").reshape(shape), 3, 0)
    tables = arrays["rel_pos_h"], arrays["rel_pos_w"]
    # Some rows of queries at a time, too.
    some = [
        np.asarray(windows.attention(q, k, v, *tables, most)).reshape(x.shape)
        for most in (x.shape[1] * x.shape[2], x.shape[2])
    ]
    near(*some, "in parts", 1e-5)
    return linear(some[0], "proj")


def weights_of(golden, prefix="param", but=()):
    arrays = {
        name: array
        for name, array in under(golden, prefix).items()
        if not name.startswith(but or ("?",))
    }
    return loading.Weights("the golden file", arrays, {})


def model_of(golden, who=""):
    """The student's or the teacher's detector of a file, by its settings."""
    of_who = lambda key: golden[f"config/{who}{key}"]
    patch = setting(golden, "patch_size")
    width = setting(golden, "fpn_channels")
    classes = setting(golden, "num_classes")
    ratios = tuple(golden["config/aspect_ratios"].tolist())
    net = vitdet.Net(
        width=of_who("embed_dim").item(),
        depth=of_who("depth").item(),
        heads=of_who("num_heads").item(),
        patch=patch,
        image_size=(setting(golden, "image_size"),) * 2,
        pretrain_grid=(setting(golden, "pretrain_img_size") // patch,) * 2,
        window=setting(golden, "window_size"),
        global_blocks=tuple(of_who("global_blocks").tolist()),
        mlp_ratio=float(setting(golden, "mlp_ratio")),
        taps=True,
    )
    return detector.Detector(
        backbone=vitdet.Backbone(net, width),
        proposal_generator=roi_heads.ProposalGenerator(
            roi_heads.RpnHead(width, len(ratios))
        ),
        roi_heads=roi_heads.RoiHeads(
            roi_heads.BoxHead(width, setting(golden, "fc_dim")),
            roi_heads.BoxPredictor(classes),
            roi_heads.MaskHead(classes, width),
        ),
        stu_adapter=None if who else detector.Adapter(width),
        geometry=detector.Geometry(
            anchor_sizes=tuple(golden["config/anchor_sizes"].tolist()),
            anchor_ratios=ratios,
            canonical_size=setting(golden, "canonical_box_size"),
            canonical_level=setting(golden, "canonical_level"),
            box_bins=setting(golden, "box_pool"),
            mask_bins=setting(golden, "mask_pool"),
            samples=setting(golden, "sampling_ratio"),
        ),
    )


def variables_of(model, golden, prefix="param"):
    shapes = jax.eval_shape(lambda key: detector.init(model, key), jax.random.key(0))
    grid = model.backbone.net.pretrain_grid
    filled = graft.onto(shapes, weights_of(golden, prefix), grid=grid)
    return jax.tree.map(jnp.asarray, filled)


def images_of(golden):
    """[B, S, S, 3] normalised and padded, and the sizes [B, 2] without padding."""
    side = setting(golden, "image_size")
    sizes = golden["input/image_sizes"]
    mean, std = (golden[f"config/pixel_{name}"] for name in ("mean", "std"))
    batch = np.zeros((len(sizes), side, side, len(mean)), np.float32)
    for number, (height, width) in enumerate(sizes):
        image = golden[f"input/image{number}"].transpose(1, 2, 0)
        batch[number, :height, :width] = (image - mean) / std
    return jnp.asarray(batch), sizes


def maps_of(golden, prefix="output/p"):
    return tuple(jnp.asarray(nhwc(golden[f"{prefix}{k}"])) for k in vitdet.LEVELS)


def test_backbone():
    golden = load("backbone")
    model = model_of(golden)
    variables, (image, _) = variables_of(model, golden), images_of(golden)
    near(image, nhwc(golden["output/preprocessed"]), "preprocessed", 2e-4)

    @jax.jit
    def run(variables, image):
        net = lambda module, image: module.backbone.net(image)
        _, taps = model.apply(variables, image, method=net)
        return taps, model.apply(variables, image, method=model.features)

    taps, features = run(variables, image)
    for block in range(model.backbone.net.depth):
        near(taps[block], golden[f"output/block{block}"], f"block {block}", 2e-4)
    last = nhwc(golden["output/last_feat"])
    near(features.tokens, last, "last_feat", 2e-4)
    for level, got in zip(vitdet.LEVELS, features.maps, strict=True):
        near(got, nhwc(golden[f"output/p{level}"]), f"p{level}", 2e-4)
    # Without blocks: the patches, and the table of positions at this grid.
    net = variables["params"]["backbone"]["net"]
    patch_embed = layers.PatchEmbed(
        model.backbone.net.patch, image.shape[-1], model.backbone.net.width, False
    )
    cut = detector.vitdet.patches.patchify(image, model.backbone.net.patch)
    got = patch_embed.apply({"params": net["patch_embed"]}, cut)
    wanted = golden["output/patch_embed"]
    near(got.reshape(wanted.shape), wanted, "patch_embed", 2e-4)
    wanted = golden["output/pos_embed_resized"]
    table = net["pos_embed"]
    got = resize.resize_pos_embed(
        table, model.backbone.net.pretrain_grid, wanted.shape[1:3]
    )
    near(got[:, 1:].reshape(wanted.shape), wanted, "pos_embed_resized", 2e-4)


def test_drop_path():
    golden, file = load("backbone"), load("drop_path")
    model, rate = model_of(golden), setting(file, "drop_path_rate")
    net = model.backbone.net.clone(drop_path=rate)
    rates = file["config/rates_per_block"]
    keep, noise = iter(file["input/keep_mask_per_call"]), []
    for block in range(net.depth):
        two = [next(keep) if rates[block] else np.ones(2) for _ in range(2)]
        noise.append(np.stack(two, axis=1))  # Uniform numbers of 1 stay, of 0 go.
    assert next(keep, None) is None
    # Two calls a block, of the rates that the blocks have here.
    factors = layers.drop_path(jnp.zeros((1, net.depth, 2)) + 0.999, rate)
    near(1 - 1 / factors[:, 0, 0], rates, "rates", 1e-6)
    variables = variables_of(model, golden)["params"]["backbone"]["net"]
    image, _ = images_of(golden)
    noise = jnp.asarray(np.stack(noise, axis=1), jnp.float32)  # [B, depth, 2]
    got, _ = jax.jit(net.apply)({"params": variables}, image, noise)
    near(got, nhwc(file["output/last_feat"]), "last_feat", 2e-4)


# Proposals.


def keys_of(golden, phase):
    """`before`, `after`, `threshold` of `proposals.propose` in train or test."""
    which = ("train", "test").index(phase)
    return dict(
        before=int(golden["config/rpn_pre_nms_topk_train_test"][which]),
        after=int(golden["config/rpn_post_nms_topk_train_test"][which]),
        threshold=setting(golden, "rpn_nms_thresh"),
    )


def test_rpn():
    golden, backbone = load("rpn"), load("backbone")
    model = model_of(backbone)
    variables, maps = variables_of(model, backbone), maps_of(backbone)
    side = setting(golden, "image_size")
    places = detector.anchor_boxes(
        model.geometry, (side, side), model.backbone.net.patch
    )
    run = jax.jit(lambda v, x: model.apply(v, x, method=model.anchors))
    logits, deltas = run(variables, maps)
    output = under(golden, "output")
    decode = jax.jit(boxes.decode, static_argnums=2)
    for k, place, logit, delta in zip(
        vitdet.LEVELS, places, logits, deltas, strict=True
    ):
        cells = anchors.cell(
            model.geometry.anchor_sizes[k - 2], model.geometry.anchor_ratios
        )
        near(cells, output[f"cell_anchors_p{k}"], f"cells {k}", 1e-4)
        near(place, output[f"anchors_p{k}"], f"anchors {k}", 1e-3)
        near(logit, output[f"logits_flat_p{k}"], f"logits {k}", 1e-4)
        near(delta, output[f"deltas_flat_p{k}"], f"deltas {k}", 1e-4)
        maps_again = nhwc(output[f"logits_p{k}"]), nhwc(output[f"deltas_p{k}"])
        near(logit, maps_again[0].reshape(logit.shape), f"logits {k}", 1e-4)
        near(delta, maps_again[1].reshape(delta.shape), f"deltas {k}", 1e-4)
        decoded = decode(place[None], delta, proposals.RPN_WEIGHTS)
        near(decoded, output[f"decoded_p{k}"], f"decoded {k}", 2e-2)
    for phase in ("train", "test"):
        propose = jax.jit(
            functools.partial(proposals.propose, **keys_of(golden, phase))
        )
        got = propose(logits, deltas, places, golden["input/image_sizes"])
        for number in range(len(golden["input/image_sizes"])):
            wanted = output[f"proposals_{phase}_image{number}"]
            real = np.asarray(got.valid[number])
            assert real.sum() == len(wanted) and real[: len(wanted)].all()
            near(got.boxes[number][real], wanted, f"{phase} {number}", 2e-2)
            scores = output[f"scores_{phase}_image{number}"]
            near(got.logits[number][real], scores, f"scores {phase} {number}", 1e-3)


# Inference.


def stacked_boxes(golden, name):
    """[B, R, 4] of arrays for each picture, equally many of each."""
    each = [
        golden[f"output/{name}_image{k}"]
        for (k,) in numbers(rf"{name}_image(\d+)", under(golden, "output"))
    ]
    return jnp.asarray(np.stack(each))


def rows(array, counts):
    """Splits the rows of all pictures into those of each."""
    return np.split(array, np.cumsum(counts)[:-1])


def detect_keys(golden):
    return dict(
        least=setting(golden, "score_thresh"),
        threshold=setting(golden, "det_nms_thresh"),
        count=setting(golden, "det_topk"),
    )


def test_inference():
    golden, backbone = load("inference"), load("backbone")
    model, output = model_of(backbone), under(golden, "output")
    variables, maps = variables_of(model, backbone), maps_of(backbone)
    counts, sizes = output["num_proposals"], golden["input/image_sizes"]
    regions = np.zeros((len(counts), counts.max(), 4), np.float32)
    valid = np.arange(counts.max())[None] < counts[:, None]
    regions[valid] = output["proposals"]

    @jax.jit
    def classify(variables, maps, regions):
        count = regions.shape[1]
        (pooled,) = detector.pool_each(maps, regions, model.geometry, box=count)
        rows = pooled.reshape(-1, *pooled.shape[2:])
        head = lambda module, x: module.roi_heads.box_head(x)
        vectors = model.apply(variables, rows, method=head)
        return (
            pooled,
            vectors,
            *model.apply(variables, maps, regions, method=model.classify),
        )

    pooled, vectors, logits, deltas = classify(variables, maps, regions)
    near(pooled[valid], nhwc(output["box_pooled"]), "box_pooled", 1e-3)
    near(vectors[valid.reshape(-1)], output["box_head"], "box_head", 1e-3)
    near(logits[valid], output["cls_logits"], "cls_logits", 1e-3)
    flat = deltas[valid].reshape(output["box_deltas"].shape)
    near(flat, output["box_deltas"], "box_deltas", 1e-3)
    probabilities = jax.nn.softmax(logits)
    near(probabilities[valid], output["probs"], "probs", 1e-4)
    decoded = detections.decode_classes(jnp.asarray(regions), deltas, sizes)
    unclipped = boxes.decode(regions[:, :, None], deltas, detections.BOX_WEIGHTS)
    flat = unclipped[valid].reshape(output["decoded_boxes"].shape)
    near(flat, output["decoded_boxes"], "decoded_boxes", 2e-2)

    everything = probabilities[0, :, :-1].size
    detect = jax.jit(
        functools.partial(
            detections.detect, **detect_keys(golden), candidates=everything
        )
    )
    got = detect(probabilities, decoded, valid)
    run = jax.jit(lambda *x: model.apply(*x, method=model.segment))
    logits = run(variables, maps, got.boxes)
    near_masks(golden, model, maps, got, logits)
    for number, count in enumerate(output["num_detections"]):
        real = np.asarray(got.valid[number])
        assert real.sum() == count and real[:count].all()
        each = jax.tree.map(lambda x, n=number, c=count: np.asarray(x[n])[:c], got)
        agree_detections(golden, number, each, logits[number, :count])


def near_masks(golden, model, maps, got, logits):
    """What the mask branch makes of the detections, from the first ones of the file."""
    output = under(golden, "output")
    counts = output["num_detections"]
    pool = lambda maps, x: detector.pool_each(maps, x, model.geometry, mask=x.shape[1])
    (pooled,) = jax.jit(pool)(maps, got.boxes)
    real = np.asarray(got.valid)
    assert real.sum() == counts.sum()
    for name, array in (("mask_pooled", pooled), ("mask_logits", logits)):
        [(count,)] = numbers(rf"{name}_first(\d+)", output)
        wanted = nhwc(output[f"{name}_first{count}"])
        near(np.asarray(array)[real][:count], wanted, name, 1e-3)


def agree_detections(golden, number, got, logits):
    """The detections of one picture, as they are and in the original picture."""
    output = under(golden, "output")
    raw = {
        name: output[f"raw_{name}_image{number}"]
        for name in ("boxes", "scores", "classes", "mask_probs")
    }
    # In the file's order: scores may be so near that theirs is a matter of rounding.
    regions = output[f"kept_proposal_index_image{number}"].tolist()
    keys = list(zip(got.region.tolist(), got.labels.tolist(), strict=True))
    assert (np.diff(got.scores) <= 0).all()
    order = [keys.index(key) for key in zip(regions, raw["classes"], strict=True)]
    got, logits = jax.tree.map(lambda x: np.asarray(x)[order], (got, logits))
    near(got.boxes, raw["boxes"], f"boxes {number}", 2e-2)
    near(got.scores, raw["scores"], f"scores {number}", 1e-4)
    index = np.arange(len(logits))
    chosen = np.asarray(jax.nn.sigmoid(logits))[index, :, :, got.labels]
    near(chosen, raw["mask_probs"][:, 0], f"mask_probs {number}", 1e-4)

    original = tuple(golden["input/original_sizes"][number].tolist())
    outputs = got._asdict() | dict(
        masks=chosen, size=golden["input/image_sizes"][number]
    )
    restored = instances.restore(outputs, original)
    final = {
        name: output[f"final_{name}_image{number}"]
        for name in ("boxes", "scores", "classes")
    }
    near(restored.boxes, final["boxes"], "final boxes", 2e-2)
    near(restored.scores, final["scores"], "final scores", 1e-4)
    np.testing.assert_array_equal(restored.labels, final["classes"])
    shape = output[f"final_masks_shape_image{number}"]
    packed = output[f"final_masks_packed_image{number}"]
    wanted = np.stack([np.unpackbits(row)[: shape[1] * shape[2]] for row in packed])
    wanted = wanted.reshape(shape).astype(bool)
    masks = np.stack([run_lengths.decode(mask) for mask in restored.masks])
    few_differ(masks, wanted, f"final masks {number}")
    areas = output[f"final_masks_area_image{number}"]
    np.testing.assert_array_equal(wanted.sum(axis=(1, 2)), areas)
    for (count,) in numbers(rf"final_soft_masks_image{number}_first(\d+)", output):
        wanted = output[f"final_soft_masks_image{number}_first{count}"]
        soft = instance_masks.paste(
            chosen[:count], final["boxes"][:count].astype(np.float32), original
        )
        near(soft, wanted, f"soft masks {number}", 1e-4)


# Losses and distillation, through the shipped recipes.


def model_keys(golden, who=""):
    """`config.model` or `config.teacher.model` of a file."""
    of_who = lambda key: golden[f"config/{who}{key}"]
    patch, width = setting(golden, "patch_size"), setting(golden, "fpn_channels")
    return dict(
        size="custom",
        width=of_who("embed_dim").item(),
        depth=of_who("depth").item(),
        heads=of_who("num_heads").item(),
        patch=patch,
        image_size=(setting(golden, "image_size"),) * 2,
        mlp_ratio=float(setting(golden, "mlp_ratio")),
        pretrain_grid=(setting(golden, "pretrain_img_size") // patch,) * 2,
        window=setting(golden, "window_size"),
        global_blocks=tuple(of_who("global_blocks").tolist()),
        drop_path=0.0,
        features=width,
        head_width=width,
        head_convs=4,
        hidden=setting(golden, "fc_dim"),
        anchor_sizes=tuple(golden["config/anchor_sizes"].tolist()),
        anchor_ratios=tuple(golden["config/aspect_ratios"].tolist()),
        canonical_size=setting(golden, "canonical_box_size"),
        canonical_level=setting(golden, "canonical_level"),
        box_bins=setting(golden, "box_pool"),
        mask_bins=setting(golden, "mask_pool"),
        samples=setting(golden, "sampling_ratio"),
        roi_align="exact",
    )


def recipe_of(golden, name, folder, changes):
    """A shipped recipe with the numbers of a file, started from its weights."""
    backbone = load("backbone")
    path = str(folder / "student.safetensors")
    safetensors.numpy.save_file(under(backbone, "param"), path)
    mean, std = (backbone[f"config/pixel_{key}"] / 255 for key in ("mean", "std"))
    two = lambda key: tuple(golden[f"config/rpn_{key}_topk_train_test"].tolist())
    overrides = {
        "model": model_keys(golden),
        "data.classes": setting(golden, "num_classes"),
        "data.mean": tuple(mean.tolist()),
        "data.std": tuple(std.tolist()),
        "anchors.count": setting(golden, "rpn_batch_per_image"),
        "anchors.share": setting(golden, "rpn_positive_fraction"),
        "proposals.before": two("pre_nms"),
        "proposals.after": two("post_nms"),
        "proposals.nms": setting(golden, "rpn_nms_thresh"),
        "regions.count": setting(golden, "roi_batch_per_image"),
        "regions.share": setting(golden, "roi_positive_fraction"),
        "inference.least": setting(golden, "score_thresh"),
        "inference.nms": setting(golden, "det_nms_thresh"),
        "inference.detections": setting(golden, "det_topk"),
        "loss.group": len(golden["input/image_sizes"]),
        "compute_dtype": "float32",
        "init_from": path,
    }
    return recipes.load(name, overrides | changes)


def started(stage):
    """Variables of a stage from `config.init_from`."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    return jax.tree.map(jnp.asarray, stage.warm_start(shapes))


def batch_of(golden, file, without=()):
    """The pictures and objects of a file; its masks are those of whole pictures.

    Args:
        golden: losses.npz.
        file: with the pictures.
        without: pictures whose objects are left out.
    """
    image, sizes = images_of(file)
    side, count = image.shape[1], len(sizes)
    most = max(len(golden[f"input/gt_boxes_image{k}"]) for k in range(count))
    batch = {
        "image": image,
        "boxes": np.zeros((count, most, 4), np.float32),
        "labels": np.zeros((count, most), np.int32),
        "valid_boxes": np.zeros((count, most), bool),
        "masks": np.zeros((count, most, side, side), np.uint8),
        "frames": np.tile(np.array([0, 0, side, side], np.float32), (count, most, 1)),
        "size": sizes.astype(np.int32),
    }
    for k in set(range(count)) - set(without):
        objects = golden[f"input/gt_boxes_image{k}"]
        here = k, slice(len(objects))
        batch["boxes"][here] = objects
        batch["labels"][here] = golden[f"input/gt_classes_image{k}"]
        batch["valid_boxes"][here] = True
        # Sampling is clamped at the edge of the picture.
        short = [(0, 0), *((0, side - x) for x in sizes[k])]
        masks = np.pad(golden[f"input/gt_bitmasks_image{k}"], short, mode="edge")
        batch["masks"][here] = masks
    return jax.tree.map(jnp.asarray, batch)


def ranks(priority):
    """Float32 numbers in the very order of float64 ones."""
    return np.argsort(np.argsort(priority)).astype(np.float32)


def draws_of(golden, capacity, batch, file):
    """The priorities of a file, where proposals and objects have their places."""
    count, most = batch["valid_boxes"].shape
    anchors, regions = [], np.zeros((count, capacity + most), np.float32)
    for k in range(count):
        anchors.append(ranks(file[f"input/rpn_sampling_priority_image{k}"]))
        priority = ranks(file[f"input/roi_sampling_priority_image{k}"])
        proposed = len(golden[f"output/proposals_train_image{k}"])
        objects = int(batch["valid_boxes"][k].sum())
        assert len(priority) == proposed + objects
        regions[k, :proposed] = priority[:proposed]
        regions[k, capacity : capacity + objects] = priority[proposed:]
    return {"anchors": jnp.asarray(np.stack(anchors)), "regions": jnp.asarray(regions)}


LOSSES = {
    "loss_rpn_cls": "rpn_objectness",
    "loss_rpn_loc": "rpn_boxes",
    "loss_cls": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}


class Plain:
    """The fine-tuning task of losses.npz: one compiled program for all its files."""

    def __init__(self, folder, **changes):
        self.golden, self.backbone = load("losses"), load("backbone")
        self.config = recipe_of(self.golden, "finetune:task=detection", folder, changes)
        self.task = tasks.build(self.config)
        self.stage = finetune.from_task(self.task)
        self.variables = started(self.stage)
        self.capacity = min(
            self.config.proposals.after[0],
            len(vitdet.LEVELS) * self.config.proposals.before[0],
        )

        def loss(params, batch, draws):
            outputs, _ = self.task.forward({"params": params}, batch, draws)
            terms = self.task.terms(outputs, batch)
            return sum(terms.values()), (terms, outputs)

        self.forward = jax.jit(loss)
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def batch(self, without=()):
        return batch_of(self.golden, self.backbone, without)

    def draws(self, batch, file=None):
        file = self.golden if file is None else file
        return draws_of(self.golden, self.capacity, batch, file)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Plain(tmp_path_factory.mktemp("plain"))


def agree_losses(terms, output):
    for theirs, ours in LOSSES.items():
        np.testing.assert_allclose(terms[ours], output[theirs], rtol=1e-4, err_msg=ours)


def agree_gradients(grads, wanted):
    got = torch_names.to_torch(grads)
    assert set(got) == set(wanted)
    for name, array in wanted.items():
        golden_files.agree(got[name], array, name, 1e-3)


def agree_sampling(plain, batch, outputs, file):
    """Anchors and regions of every picture: which, in which order, of which class."""
    output = under(file, "output")
    for k, valid in enumerate(np.asarray(batch["valid_boxes"])):
        sampled = jax.tree.map(lambda x, k=k: np.asarray(x[k]), outputs.anchors)
        for name, chosen in (("pos", sampled.foreground), ("neg", sampled.background)):
            wanted = np.sort(output[f"rpn_{name}_idx_image{k}"])
            np.testing.assert_array_equal(np.flatnonzero(chosen), wanted)
        regions = jax.tree.map(lambda x, k=k: np.asarray(x[k]), outputs.regions)
        real = regions.valid
        proposed = len(plain.golden[f"output/proposals_train_image{k}"])
        place = regions.candidate[real]
        place = np.where(
            place < plain.capacity, place, place - plain.capacity + proposed
        )
        np.testing.assert_array_equal(place, output[f"roi_sampled_idx_image{k}"])
        wanted = output[f"roi_gt_classes_image{k}"]
        np.testing.assert_array_equal(regions.label[real], wanted)
        background = wanted == plain.config.data.classes
        np.testing.assert_array_equal(regions.foreground[real], ~background)
        near(regions.boxes[real], output[f"roi_boxes_image{k}"], "regions", 2e-2)
        if f"roi_gt_boxes_image{k}" in output:
            theirs = np.asarray(batch["boxes"][k])[regions.index[real]]
            wanted = output[f"roi_gt_boxes_image{k}"]
            near(theirs[~background], wanted[~background], "objects", 1e-4)
        if f"rpn_match_labels_image{k}" in output:
            wanted = output[f"rpn_match_labels_image{k}"]
            np.testing.assert_array_equal(sampled.label, wanted)
            wanted = output[f"rpn_matched_gt_image{k}"]
            np.testing.assert_array_equal(sampled.index, wanted)
        if f"roi_candidate_classes_image{k}" in output:
            agree_candidates(plain, batch, k, valid, output)


def agree_candidates(plain, batch, k, valid, output):
    """The class of every proposal and object, sampled or not."""
    objects = np.asarray(batch["boxes"][k])
    candidates = np.concatenate([output[f"proposals_train_image{k}"], objects[valid]])
    rule = plain.config.regions.overlap
    matches = matching.match(
        candidates, objects, valid, low=rule, high=rule, low_quality=False
    )
    labels = np.asarray(batch["labels"][k])[np.asarray(matches.index)]
    foreground = np.asarray(matches.label) == matching.FOREGROUND
    got = np.where(foreground, labels, plain.config.data.classes)
    np.testing.assert_array_equal(got, output[f"roi_candidate_classes_image{k}"])


def agree_heads(outputs, output):
    """What the heads say of the regions of all pictures, one after another."""
    real = np.asarray(outputs.regions.valid)
    near(outputs.class_logits[real], output["cls_logits"], "cls_logits", 1e-3)
    deltas = outputs.box_deltas[real].reshape(output["box_deltas"].shape)
    near(deltas, output["box_deltas"], "box_deltas", 1e-3)
    first = outputs.mask_logits.shape[1]
    foreground = np.asarray(outputs.regions.foreground[:, :first])
    wanted = nhwc(output["mask_logits_foreground"])
    near(outputs.mask_logits[foreground], wanted, "mask_logits", 1e-3)
    return foreground


def test_losses(plain):
    golden, batch = plain.golden, plain.batch()
    output = under(golden, "output")
    (_, (terms, outputs)), grads = plain.gradient(
        plain.variables["params"], batch, plain.draws(batch)
    )
    agree_sampling(plain, batch, outputs, golden)
    foreground = agree_heads(outputs, output)
    agree_losses(terms, output)
    agree_gradients(grads, under(golden, "output/grad"))
    # The targets of masks: from bitmaps, and what the loss is with those of polygons.
    first = jax.tree.map(lambda x: x[:, : foreground.shape[1]], outputs.regions)
    targets = jax.jit(detection.mask_targets, static_argnums=2)
    got = targets(batch, first, outputs.mask_logits.shape[2])
    wanted = output["mask_targets_foreground"]
    few_differ(np.asarray(got)[foreground], wanted, "mask_targets_foreground")
    polygons = np.array(got)
    polygons[foreground] = output["mask_targets_polygon_foreground"]
    loss = losses.region_masks(
        outputs.mask_logits,
        first.label,
        polygons,
        first.foreground,
        group=plain.config.loss.group,
    )
    wanted = output["loss_mask_polygon_targets"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_losses_empty_gt(plain):
    golden = load("losses_empty_gt")
    output = under(golden, "output")
    counts = [k for (k,) in numbers(r"rpn_pos_idx_image(\d+)", output)]
    empty = [k for k in counts if not len(output[f"rpn_pos_idx_image{k}"])]
    assert empty
    batch = plain.batch(without=empty)
    (_, (terms, outputs)), _ = plain.gradient(
        plain.variables["params"], batch, plain.draws(batch, golden)
    )
    agree_sampling(plain, batch, outputs, golden)
    agree_losses(terms, output)


def test_ratio2_deviation(tmp_path):
    golden = load("ratio2_deviation")
    output, inference = under(golden, "output"), load("inference")
    two = Plain(tmp_path, **{"model": model_keys(load("losses")) | dict(samples=2)})
    batch = two.batch()
    _, (terms, outputs) = two.forward(two.variables["params"], batch, two.draws(batch))
    agree_losses(terms, output)
    agree_heads(outputs, output)
    predict = jax.jit(two.task.evaluators["eval"].predict)
    got = jax.device_get(predict(two.variables, {}, batch))
    for k, original in enumerate(inference["input/original_sizes"].tolist()):
        real = got["valid"][k]
        wanted = {
            name: output[f"inference_raw_{name}_image{k}"]
            for name in ("boxes", "scores", "classes")
        }
        near(got["boxes"][k][real], wanted["boxes"], f"boxes {k}", 2e-2)
        near(got["scores"][k][real], wanted["scores"], f"scores {k}", 1e-4)
        np.testing.assert_array_equal(got["labels"][k][real], wanted["classes"])
        row = {name: array[k] for name, array in got.items()}
        final = instances.restore(row, tuple(original))
        near(final.boxes, output[f"inference_final_boxes_image{k}"], "final", 2e-2)
        areas = np.array([run_lengths.area([mask])[0] for mask in final.masks])
        wanted = output[f"inference_final_masks_area_image{k}"]
        assert np.abs(areas - wanted).sum() <= 0.001 * len(areas) * np.prod(original)


def test_distill(tmp_path):
    golden, file = load("distill"), load("losses")
    output = under(golden, "output")
    path = str(tmp_path / "teacher.safetensors")
    safetensors.numpy.save_file(under(golden, "param_teacher"), path)
    width = setting(golden, "fpn_channels")
    teacher_keys = model_keys(golden, "teacher_")
    for key in ("head_width", "head_convs", "hidden"):  # No head of its is built.
        del teacher_keys[key]
    config = recipe_of(
        golden | {"input/image_sizes": file["input/image_sizes"]},
        "specific_det",
        tmp_path,
        {
            "model": model_keys(golden) | dict(adapter=width),
            "teacher.model": teacher_keys,
            "teacher.checkpoint": path,
        },
    )
    stage = stages.build(config)
    variables, frozen = started(stage), jax.tree.map(jnp.asarray, stage.frozen())
    batch = batch_of(file, load("backbone"))
    capacity = config.proposals.after[0]
    draws = draws_of(file, capacity, batch, file)

    # The two networks, level by level.
    student = detector.detector(config.model, config.data.classes, adapter=width)
    teacher = detector.detector(config.teacher.model, config.data.classes, heads=False)

    @jax.jit
    def run(variables, frozen, image):
        maps = student.apply(variables, image, method=student.features).maps
        seen = teacher.apply(frozen, image, method=teacher.features).maps
        return (
            student.apply(variables, maps, method=student.adapt),
            student.apply(variables, maps, method=student.anchors)[0],
            seen,
            teacher.apply(frozen, seen, method=teacher.anchors)[0],
        )

    results = run(variables, frozen, batch["image"])
    names = ("student_adapted", "student_logits", "teacher", "teacher_logits")
    for name, maps in zip(names, results, strict=True):
        for level, got in zip(vitdet.LEVELS, maps, strict=True):
            wanted = nhwc(output[f"{name}_p{level}"])
            bound = 2e-4 if name == "teacher" else 1e-3
            near(got.reshape(wanted.shape), wanted, f"{name}_p{level}", bound)
    for level, x, logits, seen, theirs in zip(vitdet.LEVELS, *results, strict=True):
        agree_level(output, level, x, logits, seen, theirs, config.loss.group)
    terms = jax.jit(functools.partial(specific_det.distillation, config))(*results)
    for (step,) in numbers(r"distill_feat_loss_iter(\d+)", output):
        for name, ours in (("feat", "feature"), ("cls", "objectness")):
            got = specific_det.warmup(config, step) * terms[ours]
            wanted = output[f"distill_{name}_loss_iter{step}"]
            np.testing.assert_allclose(got, wanted, rtol=1e-4)
    [(step,)] = numbers(r"total_loss_iter(\d+)", output)

    def loss(params):
        return stage.loss(params, {}, frozen, batch, draws, jnp.int32(step))

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, _), grads = gradient(variables["params"])
    np.testing.assert_allclose(total, output[f"total_loss_iter{step}"], rtol=1e-4)
    agree_gradients(grads, under(golden, f"output/grad_iter{step}"))


def agree_level(output, level, x, logits, seen, theirs, group):
    """The mask and the two terms of one level."""
    logits, theirs = (flat.reshape(*x.shape[:3], -1) for flat in (logits, theirs))
    mask = detector_distill.attention_mask(theirs)
    near(mask, output[f"mask_p{level}"], f"mask {level}", 1e-4)
    term = detector_distill.features(x, seen, mask, group=group)
    np.testing.assert_allclose(term, output[f"feat_term_p{level}"], rtol=1e-4)
    for cut in (False, True):
        term = detector_distill.objectness(logits, theirs, mask, group=group, cut=cut)
        np.testing.assert_allclose(term, output[f"cls_term_p{level}"], rtol=1e-4)


def test_distill_saturation():
    golden = load("distill_saturation")
    output = under(golden, "output")
    student, teacher = (
        jnp.asarray(nhwc(golden[f"input/{who}_logits"]))
        for who in ("student", "teacher")
    )
    x, seen = (
        jnp.asarray(nhwc(golden[f"input/{who}_feat"])) for who in ("student", "teacher")
    )
    mask = detector_distill.attention_mask(teacher)
    near(mask, output["mask"], "mask", 1e-6)
    config = recipes.load("specific_det")
    feature = detector_distill.features(x, seen, mask, group=1)
    np.testing.assert_allclose(feature, output["feat_term"], rtol=1e-5)
    weighted = config.distill.feature * feature
    np.testing.assert_allclose(weighted, output["distill_feat_loss"], rtol=1e-5)

    def loss(student, cut):
        return config.distill.objectness * detector_distill.objectness(
            student, teacher, mask, group=1, cut=cut
        )

    value, grad = jax.value_and_grad(loss)(student, True)
    np.testing.assert_allclose(value, output["distill_cls_loss"], rtol=1e-5)
    np.testing.assert_allclose(
        value / config.distill.objectness, output["cls_term"], rtol=1e-5
    )
    wanted = nhwc(output["grad_student_logits_of_cls_loss"])
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-20)
    # From logits the gradient is there where the cut one is lost.
    lost = (wanted == 0) & (np.abs(jax.nn.sigmoid(teacher) - (student > 0)) > 0.5)
    assert lost.any() and np.asarray(jax.grad(loss)(student, False))[lost].all()


# Parameters and their optimiser.


def optim_of(**keys):
    config = recipes.load("finetune:task=detection")
    with config.unlocked():
        config.optim.update(keys)
    return config.optim


def check_adamw(stem):
    """Eight updates by the file's gradients, at the rates of its schedule."""
    golden = load(stem)
    params, output = under(golden, "param"), under(golden, "output")
    last = setting(golden, "max_iter")
    values = golden["config/values"]
    config = optim_of(
        lr=setting(golden, "base_lr"),
        wd=setting(golden, "weight_decay"),
        b1=golden["config/betas"][0].item(),
        b2=golden["config/betas"][1].item(),
        eps=setting(golden, "eps"),
        milestones=tuple((golden["config/milestones"] / last).tolist()),
        decay=(values[1] / values[0]).item(),
        warmup_epochs=float(setting(golden, "warmup_iters")),
        warmup_start=setting(golden, "warmup_factor"),
        layer_decay=setting(golden, "lr_decay_rate"),
    )
    assert optim.depth_of(list(params)) == setting(golden, "depth")
    rate = optim.learning_rate(config, 1, last)
    multipliers = output["lr_multiplier_per_step"]
    got = np.array([rate(step) for step in range(len(multipliers))])
    golden_files.agree(got / config.lr, multipliers, "rates", 1e-6)
    tx = optim.build(config, {name: (name,) for name in params}, rate)
    grads = under(golden, "input/grad")

    @jax.jit
    def update(params, state, step):
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for step in range(len(multipliers)):
        params, state = update(params, state, step)
        for name, wanted in under(golden, f"output/after{step + 1}").items():
            golden_files.agree(params[name], wanted, f"{name} after {step + 1}", 1e-5)


def test_adamw_layer_decay():
    check_adamw("adamw_layer_decay")


def test_adamw_no_layer_decay():
    check_adamw("adamw_no_layer_decay")


def test_lr_schedule():
    golden = json.loads(golden_files.path("lr_schedule.json", "detection").read_text())
    total = golden["max_iter"]
    config = recipes.load("finetune:task=detection").optim
    milestones = np.array(config.milestones) * total
    np.testing.assert_allclose(milestones, golden["milestones"], rtol=1e-12)
    assert config.warmup_start == golden["warmup_factor"]
    with config.unlocked():
        config.warmup_epochs = float(golden["warmup_iters"])
    rate = optim.learning_rate(config, 1, total)
    for step, wanted in golden["multiplier"].items():
        np.testing.assert_allclose(rate(int(step)) / config.lr, wanted, rtol=2e-6)


@pytest.mark.parametrize(
    "stem, size, adapter",
    [
        ("vit_b_teacher", "b16", False),
        ("vit_s_distill", "s16", True),
        ("vit_ti_distill", "ti16", True),
    ],
)
def test_params(stem, size, adapter):
    file = golden_files.path(f"params_{stem}.json", "detection")
    golden = json.loads(file.read_text())
    name = f"specific_det:student={size}" if adapter else "finetune:task=detection"
    config = recipes.load(name)
    wanted = golden["parameters"]
    logits = wanted["roi_heads.box_predictor.cls_score.weight"]["shape"][0]
    model = detector.detector(config.model, logits - 1, adapter=config.model.adapter)
    shapes = jax.eval_shape(lambda key: detector.init(model, key), jax.random.key(0))
    got = torch_names.shapes(shapes)
    assert got == {name: tuple(each["shape"]) for name, each in wanted.items()}
    counts = golden["counts"]
    sizes = {name: int(np.prod(shape)) for name, shape in got.items()}
    total = lambda prefix: sum(
        n for name, n in sizes.items() if name.startswith(prefix)
    )
    assert total("") == counts["total"]
    assert total("stu_adapter.") == counts["adapter"]
    assert total("") - total("stu_adapter.") == counts["total_without_adapter"]
    assert total("backbone.net.") == counts["vit"]
    with config.unlocked():
        config.optim.layer_decay = 0.7  # Distillation has none.
    hypers = optim.hyper(config.optim, list(got))
    for name, each in wanted.items():
        scale = each["lr_multiplier_layer_decay"]
        np.testing.assert_allclose(hypers[name].lr_scale, scale, rtol=1e-9)
        spared = each["weight_decay"] == 0.0
        assert hypers[name].wd == (0.0 if spared else config.optim.wd), name
