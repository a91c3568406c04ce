# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector's training asks for, as guards: products, and a TPU's memory."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g2sd_jax import open_keys, recipes, stages
from g2sd_jax.measure import flops, hlo, hlo_work, topology
from g2sd_jax.models import detector
from g2sd_jax.ops import matching

CANVAS, PATCH = (1024, 1024), 16


def batch_of(config):
    """Shapes of one picture with its objects."""
    data, (height, width) = config.data, config.model.image_size
    most, side = data.max_boxes, data.mask_size
    shapes = dict(
        image=((height, width, 3), np.uint8),
        boxes=((most, 4), np.float32),
        labels=((most,), np.int32),
        valid_boxes=((most,), bool),
        masks=((most, side, side), np.uint8),
        frames=((most, 4), np.float32),
        size=((2,), np.int32),
    )
    return {
        name: jax.ShapeDtypeStruct((1, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


@pytest.mark.slow  # Twenty seconds of tracing each.
@pytest.mark.parametrize(("student", "work"), [("s16", 4300e9), ("ti16", 3690e9)])
def test_distillation_asks_for_the_known_work(student, work):
    """Per picture at 1024 x 1024, both passes; attention that is computed anew too."""
    one = {"batch": 1, "loss.group": 1, "teacher.checkpoint": "random:0"}
    config = open_keys.assume(recipes.load(f"specific_det:student={student}", one))
    stage = stages.build(config)
    teacher = detector.detector(
        config.teacher.model, config.data.classes, "config.teacher.model", heads=False
    )
    key, batch = jax.random.key(0), batch_of(config)
    params = jax.eval_shape(stage.init, key)["params"]
    frozen = jax.eval_shape(lambda key: detector.init(teacher, key), key)
    draws = jax.eval_shape(stage.draw, key, batch)

    def gradient(params, frozen, batch, draws):
        loss = lambda params: stage.loss(params, {}, frozen, batch, draws, 1)[0]
        return jax.grad(loss)(params)

    got = flops.matmul(gradient, params, frozen, batch, draws)
    assert abs(got / work - 1) < 0.05, f"{got / 1e9:.0f} GFLOP"


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; pip install 'g2sd_jax[tpu]'",
)


def moved(function, *arguments):
    """MB to and from the main memory of a v5e, and MB of temporaries."""
    where = jax.sharding.SingleDeviceSharding(topology.named("v5e:2x2").devices[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    lowered = jax.jit(function).lower(*jax.tree.map(place, arguments))
    program = lowered.compile()
    traffic = hlo_work.measure(hlo.read(program.as_text()))
    temporaries = program.memory_analysis().temp_size_in_bytes
    return traffic.memory / 1e6, temporaries / 1e6


@needs_libtpu
def test_regions_are_pooled_within_a_tpus_memory():
    """Of one picture, boxes and masks, both passes."""
    config = recipes.load("finetune:task=detection,model=s16")
    count = config.regions.count
    geometry = detector.detector(config.model, classes=80).geometry
    assert geometry.roi_align == "windows"
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.bfloat16)
    maps = [
        shape(1, *grid, config.model.features)
        for grid in detector.grids(CANVAS, PATCH)[: len(detector.POOLED)]
    ]
    boxes = jax.ShapeDtypeStruct((1, count, 4), jnp.float32)
    masks = int(count * config.regions.share)

    def both(maps, boxes, gradients):
        pool = lambda maps: detector.pool_each(
            maps, boxes, geometry, box=count, mask=masks
        )
        pooled, backward = jax.vjp(pool, maps)
        return pooled, backward(gradients)

    gradients = tuple(
        shape(1, number, bins, bins, config.model.features)
        for number, bins in ((count, geometry.box_bins), (masks, geometry.mask_bins))
    )
    main, temporaries = moved(both, maps, boxes, gradients)
    assert 100 < main < 600 and temporaries < 100, (main, temporaries)


@needs_libtpu
def test_anchors_are_matched_without_the_table_of_all_pairs():
    """Of one picture; all maps have 261,888 anchors."""
    geometry = detector.detector(recipes.load("specific_det").model, 80).geometry
    anchors = detector.anchor_boxes(geometry, CANVAS, PATCH)
    anchors = jnp.concatenate(anchors).astype(jnp.float32)
    assert len(anchors) == 261_888
    match = functools.partial(matching.match, low=0.3, high=0.7, low_quality=True)
    objects = jax.ShapeDtypeStruct((100, 4), jnp.float32)
    valid = jax.ShapeDtypeStruct((100,), bool)
    main, temporaries = moved(match, anchors, objects, valid)
    assert 4 < main < 16 and temporaries < 1, (main, temporaries)
