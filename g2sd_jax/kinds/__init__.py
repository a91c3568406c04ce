# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Kinds of trained networks: one file each, found by `describe["kind"]`.

A file of this folder has `KIND`, a `Kind`: all that the verbs and pages have to know of
one. A new kind is such a file and a line of `KINDS`; no verb asks for a kind by name.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import core, parallel, tasks
from g2sd_jax.data import files
from g2sd_jax.exports import weight_files
from g2sd_jax.models import layers
from g2sd_jax.ops import augment
from g2sd_jax.weights import architecture, loading

KINDS = {  # Name -> its module. A state dict is recognised by the first that does.
    "segmentor": ".segmentor",
    "detector": ".detector",
    "probe": ".probe",
    "mae": ".mae",
    "vit": ".vit",
}
MOST_LIKELY = 5  # Classes of a sentence.


class Finished(NamedTuple):
    """A stage with the weights it has learned."""

    source: str  # the workdir or file of the weights
    config: ConfigDict
    stage: core.Stage
    variables: dict
    describe: dict  # of the checkpoint: architecture, class names, target, ...

    @property
    def kind(self) -> "Kind":
        """The kind of network that the stage trains."""
        return by_name(self.stage.describe["kind"])

    @property
    def params(self) -> int:
        """The number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    @property
    def spec(self) -> augment.Spec:
        """The preprocessing of a picture, as for evaluation."""
        return augment.spec(self.config, train=False)

    def model(self) -> nn.Module:
        """The encoder's module, which its parameters fill, or the reason against it."""
        return self.kind.module(self)

    @property
    def evaluator(self) -> core.Evaluator:
        """That of the stage's task, also where a run had no labels to evaluate with."""
        if "eval" in self.stage.evaluators:
            return self.stage.evaluators["eval"]
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.data.classes = self.describe["classes"]
        return tasks.build(config).evaluators["eval"]

    def frozen(self, evaluator: core.Evaluator) -> dict:
        """The frozen variables that `evaluator` reads; {} if it reads none."""
        if not evaluator.frozen:
            return {}
        frozen = self.stage.trim(self.stage.frozen())
        return parallel.cast(frozen, layers.compute_options(self.config)["dtype"])

    def batches(
        self, images: Sequence[str], at_once: bool = False
    ) -> Iterator[tuple[dict, Sequence[str]]]:
        """Yields padded batches of picture files as evaluation has them, and the files.

        Args:
            images: files.
            at_once: all in one batch; else as many as `config.batch`.
        """
        rows = len(images) if at_once else min(self.config.batch, len(images))
        for first in range(0, len(images), rows):
            chosen = images[first : first + rows]
            image = files.read(self.config, chosen)
            index = np.minimum(np.arange(rows), len(chosen) - 1)
            valid = np.arange(rows) < len(chosen)
            index = index.astype(np.int32)
            yield dict(image=image[index], valid=valid, index=index), chosen


class ExportOptions(NamedTuple):
    """The options of `g2sd export`, as typed; "" where one is left out."""

    config: Callable[[], ConfigDict | None]  # () -> that of a run; None of a file
    readout: str = ""
    mean: str = ""
    std: str = ""


class Pictures(NamedTuple):
    """Files in a workdir that a report shows."""

    title: str  # of the section; {name} is the run's
    pattern: str  # glob of the files, relative to the workdir
    alt: str  # text in place of a picture
    source: str  # where it comes from; {file} is the file, relative to the workdir
    most: int = 1  # files that are shown


class Answer(NamedTuple):
    """What `g2sd predict` prints of one picture."""

    image: str  # its file
    sentence: str


class Kind(NamedTuple):
    """One kind of network, described by the functions that the verbs call."""

    # Arrays by PyTorch name -> whether they are of this kind.
    recognises: Callable[[Mapping[str, np.ndarray]], bool]
    # Weights -> lines on the parts of the network, for `g2sd inspect`.
    holds: Callable[[loading.Weights], list[str]]
    # Weights -> lines on the stages and verbs that can use them.
    serves: Callable[[loading.Weights], list[str]]
    # Finished -> the encoder's module; raises where no verb can see it alone.
    module: Callable[[Finished], nn.Module]
    # (finished, picture files, --out) -> an answer to each that can be read; writes
    # files of its own choice. Raises where nothing can be predicted.
    answers: Callable[[Finished, Sequence[str], str], list[Answer]]
    # (weights, options) -> what the writers of `formats` take; raises where it can not.
    prepare: Callable[[loading.Weights, ExportOptions], weight_files.Model]
    formats: Mapping[str, weight_files.Writer] = {}  # --format -> its writer
    refusals: Mapping[str, str] = {}  # --format -> why there is no writer
    # The recipe whose stage a file of this kind stands for, shipped or the path of a
    # file; "": none does.
    recipe: str = ""
    # Weights -> keys of that recipe that they set, beside model and data.
    settings: Callable[[loading.Weights], dict] = lambda weights: {}
    pictures: Sequence[Pictures] = ()  # of a run, for its report


def by_name(name: str) -> Kind:
    """The `KIND` of the module that `KINDS` names."""
    return importlib.import_module(KINDS[name], __name__).KIND


def name_of(weights: loading.Weights) -> str:
    """The kind of weights: as described, else by their names.

    Raises:
        ValueError: they are of no kind.
    """
    if weights.describe.get("kind") in KINDS:
        return weights.describe["kind"]
    for name in KINDS:
        if by_name(name).recognises(weights.arrays):
            return name
    raise architecture.refusal(weights.arrays, weights.source)


def formats() -> tuple[str, ...]:
    """The `--format`s of all kinds, each once."""
    kinds = [by_name(name) for name in KINDS]
    return tuple(dict.fromkeys(name for kind in kinds for name in kind.formats))


def most_likely(values: Mapping[str, float]) -> str:
    """The largest shares or probabilities, by name."""
    largest = sorted(values.items(), key=lambda item: -item[1])[:MOST_LIKELY]
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in largest)
