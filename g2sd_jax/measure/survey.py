# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a chain's recipe asks about the pictures and the machine before it is sized.

Such a recipe has `config.survey`: the `source` and `path` of the pictures, `options` of
how they are read, the path of a `teacher` or "", and the names of the `facts` it lacks,
which `counting` and this file find. They are appended to the recipe's arguments,
which is then read again: so the recipe stays a function of its text, and a chain's
folder keeps the text.
"""

from collections.abc import Mapping

import jax
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import recipes
from g2sd_jax.configs.chains import own
from g2sd_jax.measure import counting, step_speed
from g2sd_jax.weights import architecture, loading


def complete(
    spec: str, config: ConfigDict, overrides: Mapping, facts: Mapping[str, object]
) -> tuple[ConfigDict, dict[str, object]]:
    """Reads a recipe again with the facts that it lacks.

    Args:
        spec: `NAME:arguments` of the recipe.
        config: it, as read without them.
        overrides: values by key of the config.
        facts: of an earlier start of the same chain, which are used again; or {}.

    Returns:
        The chain's config, and the facts; the config as it is where it asks for none.
    """
    if "survey" not in config:
        return config, {}
    missing = set(config.survey.facts) - set(facts)
    if missing - set(own.TEACHER_FACTS):
        count = counting.SOURCES[config.survey.source]
        counted = count(config.survey.path, config.survey.options)
        facts = counted | machine() | facts  # A restart keeps what it was sized by.
    if missing & set(own.TEACHER_FACTS):
        facts = facts | take_teacher(config.survey.teacher)
    chosen = {name: facts[name] for name in config.survey.facts}
    words = ",".join(f"{name}={value}" for name, value in chosen.items())
    print(f"counted and measured: {words.replace(',', ', ')}", flush=True)
    name, _, arguments = spec.partition(":")
    spec = f"{name}:{','.join(filter(None, (arguments, words)))}"
    config = recipes.load(spec, overrides)
    lengths = ", ".join(
        f"{name} stages {each:g}" for name, each in config.epochs.items()
    )
    print(f"epochs that suit them: {lengths}", flush=True)
    return config, chosen


def machine() -> dict[str, object]:
    """Measures this machine.

    Returns:
        device: cpu, gpu, tpu.
        gflops: GFLOP/s of large matrix products.
    """
    device = jax.devices()[0].platform
    peak = step_speed.matmul_peak("float32" if device == "cpu" else "bfloat16")
    return dict(device=device, gflops=round(peak * 1000.0 * jax.device_count()))


def take_teacher(path: str) -> dict[str, object]:
    """Reads what the weights at `path` say of themselves.

    Returns:
        teacher_kind: autoencoder where there is a decoder, else encoder.
        teacher_width, teacher_depth, teacher_heads, teacher_patch: of the encoder; -1
            heads where the file does not say.
        teacher_side: of its pictures; -1 where they are not square, or it is not said.
        teacher_mean, teacher_std: that its pictures are normalised by, such as
            `0.5+0.5+0.5`; "" where the file does not say.
    """
    place = epath.Path(path).expanduser()
    if not place.exists():
        raise ValueError(
            f"teacher={path!r} is no size (WIDTHxDEPTH, or one of "
            f"{', '.join(own.NAMED)}), and there is no such workdir, file or "
            "directory."
        )
    weights = loading.read(str(place), "teacher")
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    height, width = shape.image_size or (-1, -1)
    numbers = lambda name: "+".join(map(str, weights.describe.get(name) or ()))
    return dict(
        teacher_kind="autoencoder" if weights.has_decoder else "encoder",
        teacher_width=shape.width,
        teacher_depth=shape.depth,
        teacher_heads=shape.heads or -1,
        teacher_patch=shape.patch,
        teacher_side=height if height == width else -1,
        teacher_mean=numbers("mean"),
        teacher_std=numbers("std"),
    )
