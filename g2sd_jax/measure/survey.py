# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a chain's recipe asks about the pictures and the machine before it is sized.

Such a recipe has `config.survey`: the `path` of the pictures, that of a `teacher` or
"", and the names of the `facts` it lacks. They are appended to the recipe's arguments,
which is then read again: so the recipe stays a function of its text, and a chain's
folder keeps the text.
"""

from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from g2sd_jax import recipes
from g2sd_jax.configs.chains import folder as folder_chain
from g2sd_jax.data import decoder, encoded, folder, source
from g2sd_jax.measure import step_speed
from g2sd_jax.weights import architecture, loading

SAMPLED = 64  # Pictures that are opened to see how large they are.
TRAINING = ("train", "training")
EVALUATION = ("val", "valid", "validation", "test", "testing")


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
    if missing & set(folder_chain.FACTS):
        facts = facts | take(config.survey.path)
    if missing & set(folder_chain.TEACHER_FACTS):
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


def take(path: str) -> dict[str, object]:
    """Counts the pictures at `path`, and measures this machine.

    Returns:
        pictures: of the training split.
        classes: 0 where no picture has a label.
        side: the shorter one of the median picture, in pixels.
        split: the names of both splits, `train+val`; or `hold_out`, or `none` where
            there is nothing to judge by.
        device: cpu, gpu, tpu.
        gflops: GFLOP/s of large matrix products.
    """
    config = recipes.load("pretrain", {"data.source": "folder", "data.path": path})
    split = find_split(config)
    config = split_config(config, split)
    pictures, classes = source.count(config)
    if not classes:
        split = split if "+" in split else "none"
        config = split_config(config, split)
        pictures, _ = source.count(config)
    files = folder.list_files(config, config.data.train_split)
    device = jax.devices()[0].platform
    peak = step_speed.matmul_peak("float32" if device == "cpu" else "bfloat16")
    return dict(
        pictures=pictures,
        classes=classes,
        side=shorter_side(files),
        split=split,
        device=device,
        gflops=round(peak * 1000.0 * jax.device_count()),
    )


def take_teacher(path: str) -> dict[str, object]:
    """Reads what the weights at `path` say of themselves.

    Returns:
        teacher_kind: autoencoder where there is a decoder, else encoder.
        teacher_width, teacher_depth, teacher_patch: of the encoder.
        teacher_mean, teacher_std: that its pictures are normalised by, such as
            `0.5+0.5+0.5`; "" where the file does not say.
    """
    place = epath.Path(path).expanduser()
    if not place.exists():
        raise ValueError(
            f"teacher={path!r} is no size (WIDTHxDEPTH, or one of "
            f"{', '.join(folder_chain.NAMED)}), and there is no such workdir, file or "
            "directory."
        )
    weights = loading.read(str(place), "teacher")
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    numbers = lambda name: "+".join(map(str, weights.describe.get(name) or ()))
    return dict(
        teacher_kind="autoencoder" if weights.has_decoder else "encoder",
        teacher_width=shape.width,
        teacher_depth=shape.depth,
        teacher_patch=shape.patch,
        teacher_mean=numbers("mean"),
        teacher_std=numbers("std"),
    )


def find_split(config: ConfigDict) -> str:
    """The splits among the folders at `config.data.path`, or `hold_out`."""
    if "{split}" in config.data.path:
        training = next(
            (name for name in TRAINING if exists(config, name)), TRAINING[0]
        )
        evaluation = next((name for name in EVALUATION if exists(config, name)), None)
        if evaluation is None:
            raise ValueError(
                f"path={config.data.path!r}: there is nothing to evaluate on; "
                f"{{split}} may stand for one of {', '.join(EVALUATION)}."
            )
        return f"{training}+{evaluation}"
    names = set(folder.open_root(folder.locate(config, "train")).folders())
    training = next((name for name in TRAINING if name in names), None)
    evaluation = next((name for name in EVALUATION if name in names), None)
    if training and evaluation:
        return f"{training}+{evaluation}"
    if training and not evaluation:
        raise ValueError(
            f"path={config.data.path!r} has a folder {training!r} and none to evaluate "
            f"on; add one of {', '.join(EVALUATION)}, or name {config.data.path}/"
            f"{training} itself: a share of its pictures is then held out."
        )
    return "hold_out"


def exists(config: ConfigDict, split: str) -> bool:
    """Whether there is a file or folder for a split."""
    try:
        folder.locate(config, split)
    except ValueError:
        return False
    return True


def split_config(config: ConfigDict, split: str) -> ConfigDict:
    """Copies a config with the splits that `split` names, see `take`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.hold_out = 0.0
        if split == "hold_out":
            config.data.hold_out = folder_chain.HELD_OUT
        elif "+" in split:
            config.data.train_split, config.data.eval_split = split.split("+")
    return config.lock()


def shorter_side(files: encoded.Encoded) -> int:
    """The shorter side of the median picture, in pixels; unreadable ones aside."""
    sides = []
    for index in np.unique(np.linspace(0, files.count - 1, SAMPLED).astype(int)):
        try:
            with decoder.open_image(files.read(int(index))) as image:
                sides.append(min(image.size))
        except (OSError, decoder.Unreadable, Image.DecompressionBombError):
            continue
    if not sides:
        raise ValueError(f"{files.origin}: no picture could be opened.")
    return int(np.median(sides))
