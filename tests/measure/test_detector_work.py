# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The matrix products that a detector's training asks for, as a guard."""

import jax
import numpy as np
import pytest

from g2sd_jax import open_keys, recipes, stages
from g2sd_jax.measure import flops
from g2sd_jax.models import detector


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
