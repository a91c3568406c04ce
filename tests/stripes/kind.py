# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A network that sees stripes, as the verbs meet it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import special

import stripes
from g2sd_jax import kinds, summary
from g2sd_jax.exports import programs, weight_files
from g2sd_jax.models import vit
from g2sd_jax.ops import augment
from g2sd_jax.weights import description, graft, loading
from stripes import evaluator, model

HEAD = "direction"


class Exported(NamedTuple):
    """The `weight_files.Model` of such a network."""

    source: str
    arrays: Mapping[str, np.ndarray]
    describe: Mapping
    preprocessing: Mapping
    readout: str = "direction and frequency"


def holds(weights: loading.Weights) -> list[str]:
    """Lines on the network and the pictures it was trained on."""
    return [
        f"stripes: {weights.summary()}",
        f"head: {weights.classes(HEAD)} directions, and a frequency in cycles",
        *description.pictures(weights.describe, with_classes=False),
    ]


def module(finished: kinds.Finished) -> NoReturn:
    """Refuses: no verb sees its encoder alone."""
    raise ValueError(f"{finished.source} sees stripes; nothing else is asked of it.")


def answers(
    finished: kinds.Finished, images: Sequence[str], out: str
) -> list[kinds.Answer]:
    """Names direction and frequency; `out` is a JSON file for both arrays."""
    eval_evaluator = finished.stage.evaluators["eval"]
    frozen, apply = finished.frozen(eval_evaluator), jax.jit(eval_evaluator.predict)
    rows = []
    for batch, chosen in finished.batches(images):
        outputs = jax.device_get(apply(finished.variables, frozen, batch))
        shares = special.softmax(outputs["logits"].astype(np.float64), axis=-1)
        degrees, cycles = evaluator.read(outputs["logits"], outputs["frequency"])
        for row, image in enumerate(chosen):
            rows.append(
                dict(
                    image=image,
                    degrees=float(degrees[row]),
                    shares=shares[row].tolist(),
                    cycles=float(cycles[row]),
                )
            )
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
    return [
        kinds.Answer(
            row["image"], f"{row['degrees']:g} deg, {row['cycles']:.2f} cycles"
        )
        for row in rows
    ]


def prepare(weights: loading.Weights, options: kinds.ExportOptions) -> Exported:
    """Completes the weights by what a reader of the file needs."""
    if options.readout:
        raise ValueError(f"--readout={options.readout}: stripes have one readout.")
    describe = weights.describe
    return Exported(
        source=weights.source,
        arrays=weights.arrays,
        describe=describe,
        preprocessing=dict(
            image_size=list(describe["model"]["image_size"]),
            mean=list(describe["mean"]),
            std=list(describe["std"]),
            directions=describe["classes"],
        ),
    )


def network(exported: Exported) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """image [B, H, W, C] uint8 -> `logits` [B, A] and `frequency` [B]."""
    describe = exported.describe
    config = ConfigDict(describe["model"])
    net = model.from_config(config, describe["classes"])
    variables = graft.onto(
        jax.eval_shape(lambda key: model.init(net, key), jax.random.key(0)),
        loading.Weights(exported.source, exported.arrays, describe),
        grid=vit.grid(config),
    )
    mean, std = tuple(describe["mean"]), tuple(describe["std"])
    spec = augment.Spec(tuple(config.image_size), mean, std)

    def run(image: jax.Array) -> dict[str, jax.Array]:
        image = augment.prepare({"image": image}, {}, spec)["image"]
        return net.apply(variables, image)._asdict()

    return run


def stablehlo(exported: Exported, folder: str) -> list[str]:
    """Writes `model.stablehlo`, which answers with both arrays."""
    config = exported.describe["model"]
    pixels = ["batch", *config["image_size"], config["channels"]]
    signature = dict(
        input=dict(name="image", shape=pixels, dtype="uint8", layout="NHWC"),
        output=dict(
            logits=["batch", exported.describe["classes"]], frequency=["batch"]
        ),
    )
    return programs.write_stablehlo(exported, folder, network(exported), signature)


KIND = kinds.Kind(
    recognises=lambda arrays: f"{HEAD}.weight" in arrays,
    holds=holds,
    serves=lambda weights: [f"serves: config.init_from of {stripes.RECIPE}"],
    module=module,
    answers=answers,
    prepare=prepare,
    formats={"safetensors": weight_files.safetensors_file, "stablehlo": stablehlo},
    refusals={"timm": "timm counts no stripes; use safetensors or stablehlo"},
    recipe=stripes.RECIPE,
    pictures=(
        kinds.Pictures(
            title="What {name} learned from first",
            pattern=summary.PICTURE,
            alt="pictures of stripes",
            source="{file}, which the run left at its start.",
        ),
    ),
)
