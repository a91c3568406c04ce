# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Lines and pictures of labels before step 0: of classes, and of label maps."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from g2sd_jax import core, errors, label_values, palette, parallel, summary
from g2sd_jax.data import dataset as datasets

NAMED = 5  # Classes named from either end of the histogram.
MOSTLY = 0.9  # Share of ignored pixels from which a warning is printed.


def class_lines(
    config: ConfigDict,
    dataset: datasets.Dataset,
    _batch: Mapping | None = None,
    evaluation: Callable[[], datasets.Dataset] | None = None,
) -> list[str]:
    """The histogram of the training split's classes, where labels are at hand.

    Args:
        config: the recipe.
        dataset: the training split.
        evaluation: () -> the evaluation split, where labels are learned; then what
            cannot be learned or judged is warned of.
    """
    if dataset.labels is None or not config.data.classes:
        return []
    labels = dataset.labels[: dataset.count]
    histogram = np.bincount(labels, minlength=config.data.classes)
    order = np.argsort(-histogram, kind="stable")
    full = [label for label in order if histogram[label]]
    empty = [label for label in order if not histogram[label]]

    def listed(labels):
        names = [summary.name_of(label, dataset.classes) for label in labels]
        return ", ".join(
            f"{name} {histogram[label]}" if histogram[label] else name
            for name, label in zip(names, labels, strict=True)
        )

    if len(full) <= 2 * NAMED:
        lines = [f"labels: {listed(full)}"]
    else:
        lines = [f"labels: {listed(full[:NAMED])} … {listed(full[-NAMED:])}"]
    if empty:
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        lines.append(
            f"labels without an example: {listed(empty[:NAMED])}{more}, "
            f"{len(empty)} of {len(histogram)}"
        )
    if evaluation is None:
        return lines
    if len(full) == 1:
        lines.append(
            f"WARNING: all pictures are of one class, {listed(full)}: there is nothing "
            "to learn, the loss ends at 0 and top-1 at 100 %, whatever the pictures."
        )
    judged = evaluation()
    lines += judged.notes
    if judged.labels is not None:
        counts = np.bincount(judged.labels[: judged.count], minlength=len(histogram))
        absent = [label for label in full if not counts[label]]
        if absent:
            names = [summary.name_of(label, dataset.classes) for label in absent]
            lines.append(
                f"WARNING: {len(absent)} of {len(full)} classes have no picture in "
                f"split {config.data.eval_split!r}, so nothing judges them: "
                f"{errors.shorten_list(names, most=NAMED)}."
            )
    return lines


def class_picture(smoothing: float) -> Callable[[Mapping, Sequence[str]], core.Picture]:
    """Makes the `Stage.picture` of labels, whose targets may be mixed.

    Args:
        smoothing: of the targets, which captions leave out.
    """

    def picture(example, classes):
        if "target" in example:
            caption = mixed_caption(example["target"], smoothing, classes)
        elif "label" in example:
            caption = summary.name_of(example["label"], classes)
        else:
            caption = ""
        return core.Picture(example["image"], caption=caption)

    return picture


def mixed_caption(target: np.ndarray, smoothing: float, classes: Sequence[str]) -> str:
    """The class of a target [C]; of a mixed one both, and how much of each."""
    share = (target - smoothing / len(target)) / (1 - smoothing)
    shown = [label for label in np.argsort(-share)[:2] if share[label] > 0.005]
    if len(shown) == 1:
        return summary.name_of(shown[0], classes)
    return "\n".join(
        f"{summary.name_of(label, classes)}, {share[label]:.0%}" for label in shown
    )


def unlabelled_lines(
    terms: Sequence[str], dataset: datasets.Dataset, _batch: Mapping | None = None
) -> list[str]:
    """A line for pictures without labels: which terms of the loss are left out.

    Args:
        terms: names of the task's own.
        dataset: the training split.
    """
    return [
        f"labels: none of {dataset.count} pictures; the task's own loss "
        f"({', '.join(terms)}) is left out, the teacher's answers alone are learned, "
        "and nothing is evaluated"
    ]


def label_map_lines(
    config: ConfigDict,
    dataset: datasets.Dataset,
    batch: Mapping[str, jax.Array],
    evaluation: Callable[[], datasets.Dataset] | None = None,
) -> list[str]:
    """The pixels of each class in the first batch, and a warning if they look wrong.

    Args:
        config: the recipe.
        dataset: the training split.
        batch: its first, on the device.
        evaluation: () -> the evaluation split, whose notes are printed too.
    """
    lines = pixel_lines(config, pixels_by_label(batch["label_map"]), dataset.classes)
    return [*(evaluation().notes if evaluation else ()), *lines]


def pixels_by_label(label_map: jax.Array) -> np.ndarray:
    """[256] pixels of every label in [B, H, W], padding counted as ignored.

    The only change that the device makes to label maps is to mirror them.
    """
    everywhere = parallel.replicated(label_map.sharding.mesh)
    count = lambda label_map: jnp.bincount(label_map.reshape(-1), length=256)
    pixels = jax.jit(count, out_shardings=everywhere)(label_map)
    return np.asarray(jax.device_get(pixels), np.int64)


def pixel_lines(
    config: ConfigDict, pixels: np.ndarray, classes: Sequence[str]
) -> list[str]:
    """Lines about the label maps of a batch, from the pixels [256] of every label."""
    share = pixels / pixels.sum()
    ignored = share[label_values.IGNORED]
    order = np.argsort(-pixels[: label_values.IGNORED], kind="stable")
    present = [label for label in order if pixels[label]]
    named = [
        f"{summary.name_of(label, classes)} {share[label]:.1%}" for label in present
    ]
    if len(named) > 4 * NAMED:
        named = [*named[: 2 * NAMED], "…", *named[-2 * NAMED :]]
    lines = [
        f"pixels of the first batch: {', '.join(named) or 'none of any class'}; "
        f"{ignored:.1%} ignored or padded"
    ]
    absent = sorted(set(range(config.data.classes)) - set(present))
    if absent:
        names = ", ".join(
            summary.name_of(label, classes) for label in absent[: 2 * NAMED]
        )
        more = len(absent) - 2 * NAMED
        names += f" and {more} more" if more > 0 else ""
        lines.append(f"classes without a pixel in it: {names}")
    if not present:
        wrong = "every pixel of the first batch is ignored: nothing can be learned"
    elif ignored > MOSTLY:
        wrong = f"{ignored:.1%} of the first batch's pixels are ignored"
    elif len(present) == 1 < config.data.classes:
        wrong = f"all of the first batch is {summary.name_of(present[0], classes)}"
    else:
        return lines
    data, cause = config.data, ""
    if data.reduce_zero_label:
        cause = "Stored label 0 is ignored: set config.data.reduce_zero_label=False"
        cause += " if it is a class. "
    elif ignored:
        cause = f"Stored label {label_values.IGNORED} is ignored: a mask of 0 and 255"
        cause += " has to be stored as 0 and 1. "
    return [
        *lines,
        f"WARNING: {wrong}. {cause}Look at first_batch.png, and check "
        f"config.data.ignore={tuple(data.ignore)}, "
        f"config.data.reduce_zero_label={data.reduce_zero_label} and "
        f"config.data.labels={data.labels!r}.",
    ]


def label_map_picture(example: Mapping, classes: Sequence[str]) -> core.Picture:
    """An image beside itself in the colours of its labels; the most are its caption."""
    image, label_map = example["image"], example["label_map"]
    labels, pixels = np.unique(label_map, return_counts=True)
    names = [label_name(label, classes) for label in labels]
    most = np.argsort(-pixels, kind="stable")[:4]
    shares = [f"{names[i]} {pixels[i] / label_map.size:.0%}" for i in most]
    lines = [", ".join(shares[i : i + 2]) for i in range(0, len(shares), 2)]
    return core.Picture(
        image=image,
        beside=palette.tint(image, label_map),
        caption="\n".join(lines),
        legend=list(zip(labels.tolist(), names, strict=True)),
    )


def label_name(label: int, classes: Sequence[str]) -> str:
    """The name of a label of a label map, among which is the ignored one."""
    if label == label_values.IGNORED:
        return "ignored"
    return summary.name_of(label, classes)
