# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The Python interface: `g2sd_jax.train`, `g2sd_jax.chain`, `g2sd_jax.load`.

    import g2sd_jax

    g2sd_jax.train("finetune:model=s16", "runs/mine", data=dict(path="pictures"))
    model = g2sd_jax.load("runs/mine")
    model.predict(["rose.jpg"])

What a verb prints as one line is raised as an exception with that sentence.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from g2sd_jax import finished, loop, recipes
from g2sd_jax.data import files
from g2sd_jax.measure import survey
from g2sd_jax.models import features, vit
from g2sd_jax.ops import augment
from g2sd_jax.pages import results_table
from g2sd_jax.tools import chain as chains
from g2sd_jax.weights import architecture, graft, loading, parts

Pictures = Sequence[str | os.PathLike] | ArrayLike


class Model(NamedTuple):
    """A loaded encoder, or classifier.

    `module.apply(variables, pictures)` is the network itself; the methods are compiled
    once per batch size.
    """

    source: str  # The workdir, file or directory.
    module: vit.Vit
    variables: dict
    config: ConfigDict  # How pictures are read: size, channels, mean, std, crop.
    class_names: tuple[str, ...]  # () where there is no head, or it has no names.
    readout: str  # Which heads `predict` reads: cls, dist, mean.

    def preprocess(self, pictures: Pictures) -> jax.Array:
        """Reads and normalises pictures as for evaluation.

        Args:
            pictures: paths of files; or [B, h, w, C] uint8, which are resized to the
                model's size.

        Returns:
            [B, H, W, C] float32.
        """
        image = pictures
        if isinstance(pictures, Sequence):
            image = files.read(self.config, [os.fspath(path) for path in pictures])
        batch = {"image": jnp.asarray(image)}
        if batch["image"].dtype != jnp.uint8:
            raise ValueError(
                f"pictures of {batch['image'].dtype}: preprocess takes paths, or uint8 "
                "of values 0..255; what is normalised already goes into tokens."
            )
        return augment.prepare(batch, {}, augment.spec(self.config, train=False))[
            "image"
        ]

    def tokens(self, image: ArrayLike) -> jax.Array:
        """Encodes normalised pictures.

        Args:
            image: [B, H, W, C] of `preprocess`.

        Returns:
            [B, T, D] float32: class token and registers as far as there are such, then
            patches, row by row, then a distillation token; after the last norm. The
            stream as it is where the only norm is that of pooled patches.
        """
        out = _apply(self.module, self.variables, jnp.asarray(image))
        tokens = out.tokens if out.normed is None else out.normed
        return tokens.astype(jnp.float32)

    def embed(self, pictures: Pictures) -> np.ndarray:
        """The features [B, D] float32 of pictures: class token, or mean of patches.

        Args:
            pictures: as `preprocess` takes them.
        """
        token = features.default_token(self.module)
        encode = jax.jit(features.last, static_argnums=(0, 3))
        image = self.preprocess(pictures)
        return np.asarray(encode(self.module, self.variables, image, token))

    def predict(self, pictures: Pictures) -> np.ndarray:
        """The probabilities [B, C] float32 of the classes, `class_names` in order.

        Args:
            pictures: as `preprocess` takes them.

        Raises:
            ValueError: the model has no head.
        """
        if not self.module.classes:
            raise ValueError(
                f"{self.source} has no head, so it names nothing; fine-tune it first "
                "(g2sd_jax.train('finetune:model=file', …)), or take embed."
            )
        out = _apply(self.module, self.variables, self.preprocess(pictures))
        return np.asarray(jax.nn.softmax(vit.read_logits(out, self.readout)))


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, image):
    return module.apply(variables, image)


def train(recipe: str, workdir: str, **settings: Any) -> dict[str, float]:
    """Trains one stage, or resumes it, as `g2sd train` does.

    Args:
        recipe: `NAME:arguments` of a shipped recipe, or `PATH.py:arguments`.
        workdir: folder of the run.
        **settings: keys of the recipe, groups as dicts: `optim=dict(lr=1e-3)`.

    Returns:
        The final metrics.
    """
    config = recipes.load(recipe, settings)
    if "steps" in config and "stage" not in config:
        raise ValueError(f"{recipe} is a chain of stages; run it with g2sd_jax.chain.")
    return loop.run(config, os.fspath(workdir))


def chain(recipe: str, workdir: str, **settings: Any) -> dict[str, tuple[float, ...]]:
    """Trains a chain of stages, or continues it, as `g2sd chain` does.

    Args:
        recipe: `NAME:arguments` of a chain, such as `chains/folder:path=pictures`.
        workdir: folder of the chain; the report is written into it.
        **settings: keys of the chain.

    Returns:
        {method of the report's table: its score of each seed}; {} where nothing is
        judged.
    """
    root = os.fspath(workdir)
    config, facts = survey.complete(
        recipe, recipes.load(recipe, settings), settings, chains.facts_of(root)
    )
    chains.run(config, root, facts)
    return {
        method: results_table.scores_of(finished.chain_runs(config, root, step))
        for method, step in config.rows
    }


def load(
    path: str | os.PathLike, image_size: tuple[int, int] | None = None, **model: Any
) -> Model:
    """Loads the encoder, and the head, of a run or of somebody's weights.

    Args:
        path: a run's workdir, a weight file, or a directory of timm or transformers.
        image_size: (height, width) that it is to see; None for its own.
        **model: what the weights do not say: `heads=6`, or an option of
            `models.variants` such as `activation="quick_gelu"`.

    Raises:
        ValueError: the weights are no vision transformer's, or leave something open.
    """
    weights = loading.read(os.fspath(path), "path")
    shape = complete(weights, model)
    size = tuple(image_size or shape.image_size or ())
    if not size:
        raise ValueError(
            f"{path} does not say the size of its pictures; give image_size=(height, "
            "width)."
        )
    module = architecture.encoder(shape, size, classes=shape.classes)
    shapes = jax.eval_shape(lambda key: vit.init(module, key), jax.random.key(0))
    dropped = (*parts.PRETRAINING_NAMES, *parts.unread(shape.pool))
    variables = graft.onto(shapes, weights, grid=module.grid, dropped=dropped)
    describe = weights.describe
    default = "mean" if shape.dist_token else "cls"
    return Model(
        source=os.fspath(path),
        module=module,
        variables=variables,
        config=pictures_config(weights, size, shape.channels),
        class_names=tuple(describe.get("class_names") or ()),
        readout=describe.get("model", {}).get("readout", default),
    )


def complete(
    weights: loading.Weights, model: Mapping[str, Any]
) -> architecture.Architecture:
    """The architecture of weights, with what they leave open.

    Args:
        weights: of an encoder or a classifier.
        model: `heads`, and options of `models.variants`, by name.
    """
    shape = architecture.infer(weights.arrays, weights.describe, weights.source)
    if shape.unknown:
        raise ValueError(
            f"{weights.source} holds {weights.summary()}, and parts that no encoder "
            f"here has: {', '.join(shape.unknown[:4])} ({len(shape.unknown)} in all)."
        )
    options = dict(model)
    heads = options.pop("heads", None) or shape.heads
    if heads is None:
        raise ValueError(
            f"{weights.source} does not say its number of attention heads; give "
            f"heads=… of its {shape.width} channels."
        )
    unknown = set(options) - set(shape.variant._fields)
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no options of an encoder; known: heads, "
            f"{', '.join(shape.variant._fields)}."
        )
    return shape._replace(heads=heads, variant=shape.variant._replace(**options))


def pictures_config(
    weights: loading.Weights, size: tuple[int, int], channels: int
) -> ConfigDict:
    """A config that reads pictures as the weights' own training did.

    Args:
        weights: whose description says mean, std and evaluation crop; where it is
            silent, they are the recipes' defaults.
        size: (height, width) of the pictures.
        channels: of the pictures.
    """
    describe = weights.describe
    data = {"source": "folder"} | {
        key: tuple(describe[key]) for key in ("mean", "std") if key in describe
    }
    rules = describe.get("data", {})
    if "mean" not in data and channels != 3:
        data |= dict(mean=(0.5,) * channels, std=(0.5,) * channels)
    crop = rules.get("eval_crop", describe.get("eval_crop"))
    if crop is not None:
        data["eval_crop"] = float(crop)
    if rules.get("source") in files.IN_MEMORY:
        data["source"] = rules["source"]
    model = dict(image_size=size, channels=channels)
    return recipes.load("pretrain", {"model": model, "data": data})
