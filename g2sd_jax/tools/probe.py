# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy of features: `g2sd probe TRAIN VAL`, two files of `g2sd embed`.

A vote of the nearest neighbours and a logistic regression, both fitted to TRAIN and
evaluated on VAL; the encoder is not trained.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn import linear_model, pipeline, preprocessing

from g2sd_jax import command
from g2sd_jax.data.memory import arrays
from g2sd_jax.evaluators import masked


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("probe")
    parser.add_argument(
        "train", metavar="TRAIN", help=".npz of g2sd embed --split=train"
    )
    parser.add_argument("val", metavar="VAL", help=".npz of g2sd embed --split=eval")
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument(
        "--inverse_decay", type=float, default=1.0, help="scikit-learn's C"
    )
    args = parser.parse_args(argv)
    train, val = read(args.train), read(args.val)
    if train["features"].shape[1] != val["features"].shape[1]:
        raise ValueError(
            f"{args.train} has features of width {train['features'].shape[1]}, "
            f"{args.val} of {val['features'].shape[1]}; embed both alike."
        )
    figures = dict(
        neighbours_top1=round(neighbours(train, val, args.neighbours), 2),
        linear_top1=round(linear(train, val, args.inverse_decay), 2),
        train=len(train["label"]),
        val=len(val["label"]),
        what=str(val["what"]),
    )
    print(json.dumps(figures, indent=2))
    return 0


def read(path: str) -> dict[str, np.ndarray]:
    """Reads a file of `g2sd embed`; refuses one without labels."""
    embedded = arrays.read_npz(pathlib.Path(path))
    if "features" not in embedded or "label" not in embedded:
        raise ValueError(
            f"{path} holds {', '.join(embedded)}; a probe needs features and label, as "
            "g2sd embed writes them of labelled data."
        )
    return embedded


def neighbours(
    train: Mapping[str, np.ndarray], val: Mapping[str, np.ndarray], count: int
) -> float:
    """Top-1 in % of a vote among the nearest by cosine (after DINO)."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    chosen = masked.vote(
        unit(train["features"]),
        train["label"],
        unit(val["features"]),
        count=count,
        classes=1 + int(train["label"].max()),
    )
    return 100.0 * float(np.mean(chosen == val["label"]))


def linear(
    train: Mapping[str, np.ndarray], val: Mapping[str, np.ndarray], inverse_decay: float
) -> float:
    """Top-1 in % of a logistic regression on standardised features."""
    probe = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(C=inverse_decay, max_iter=2000),
    )
    probe.fit(train["features"], train["label"])
    return 100.0 * float(probe.score(val["features"], val["label"]))
