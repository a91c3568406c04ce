# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a run is about to learn from, told and shown once before step 0."""

import io
import os

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from g2sd_jax import core, metrics, palette, parallel, workdir

PICTURE = "first_batch.png"
NAMED = 5  # Classes told from either end of the histogram.
SIDES = (96, 256)  # Pixels that the longer side of a shown picture is brought into.
COLUMNS = 8
LINE = palette.LINE
MOSTLY = 0.9  # Share of ignored pixels that is told as a mistake.


def tell(config, stage: core.Stage, dataset, batch, key, path: str) -> None:
    """Counts, the histograms of labels, and the first batch as the device sees it.

    Args:
        config: the run's.
        stage: whose draws and augmentation are shown.
        dataset: the training split, a `data.dataset.Dataset`.
        batch: that of step 0, placed; every process takes part.
        key: that the keys of the steps are folded from.
        path: of the workdir, which gets `first_batch.png` from the main process.
    """
    for line in counts(config, dataset):
        metrics.say(line)
    if "label_map" in batch:
        for line in pixel_lines(config, pixels_by_label(batch), dataset.classes):
            metrics.say(line)
    if config.shown < 1:
        return
    seen, mean, std = look(stage, batch, key, config.shown)
    metrics.say(
        f"first batch as the device sees it: pixels {in_levels(config, mean, std)}; "
        f"config.data.mean={tuple(config.data.mean)} and std={tuple(config.data.std)}"
    )
    if jax.process_index() == 0:
        path, png = os.path.join(path, PICTURE), io.BytesIO()
        sheet(config, seen, dataset.classes).save(png, format="PNG")
        workdir.write_bytes(path, png.getvalue())
        metrics.say(f"its first {len(seen['image'])} pictures: {path}")


def counts(config, dataset) -> list[str]:
    """Lines about the training split and its labels."""
    steps = dataset.count // config.batch
    lines = [
        f"data: {dataset.count} examples in split {config.data.train_split!r}, "
        f"{steps} batches of {config.batch} an epoch, {config.data.classes} classes"
    ]
    if dataset.labels is None or not config.data.classes:
        return lines
    found = np.bincount(dataset.labels[: dataset.count], minlength=config.data.classes)
    order = np.argsort(-found, kind="stable")
    full = [label for label in order if found[label]]
    empty = [label for label in order if not found[label]]

    def listed(labels):
        named = [name_of(label, dataset.classes) for label in labels]
        return ", ".join(
            f"{name} {found[label]}" if found[label] else name
            for name, label in zip(named, labels, strict=True)
        )

    if len(full) <= 2 * NAMED:
        lines.append(f"labels: {listed(full)}")
    else:
        lines.append(f"labels: {listed(full[:NAMED])} … {listed(full[-NAMED:])}")
    if empty:
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        lines.append(
            f"labels without an example: {listed(empty[:NAMED])}{more}, "
            f"{len(empty)} of {len(found)}"
        )
    return lines


def name_of(label, classes) -> str:
    return str(classes[label]) if classes else str(label)


def of_pixels(label, classes) -> str:
    return "ignored" if label == palette.IGNORED else name_of(label, classes)


def pixels_by_label(batch) -> np.ndarray:
    """[256] pixels of every label in the whole batch, padding counted as ignored.

    All that happens to label maps on the device is that they are mirrored.
    """
    everywhere = parallel.replicated(batch["label_map"].sharding.mesh)
    count = lambda label_map: jnp.bincount(label_map.reshape(-1), length=256)
    counted = jax.jit(count, out_shardings=everywhere)(batch["label_map"])
    return np.asarray(jax.device_get(counted), np.int64)


def pixel_lines(config, found: np.ndarray, classes) -> list[str]:
    """Lines about the label maps of a batch: what is on them, what looks wrong."""
    share = found / found.sum()
    ignored = share[palette.IGNORED]
    order = np.argsort(-found[: palette.IGNORED], kind="stable")
    present = [label for label in order if found[label]]
    told = [f"{name_of(label, classes)} {share[label]:.1%}" for label in present]
    if len(told) > 4 * NAMED:
        told = [*told[: 2 * NAMED], "…", *told[-2 * NAMED :]]
    lines = [
        f"pixels of the first batch: {', '.join(told) or 'none of any class'}; "
        f"{ignored:.1%} ignored or padded"
    ]
    absent = sorted(set(range(config.data.classes)) - set(present))
    if absent:
        named = ", ".join(name_of(label, classes) for label in absent[: 2 * NAMED])
        more = len(absent) - 2 * NAMED
        named += f" and {more} more" if more > 0 else ""
        lines.append(f"classes without a pixel in it: {named}")
    if not present:
        wrong = "every pixel of the first batch is ignored: nothing can be learned"
    elif ignored > MOSTLY:
        wrong = f"{ignored:.1%} of the first batch's pixels are ignored"
    elif len(present) == 1 < config.data.classes:
        wrong = f"all of the first batch is {name_of(present[0], classes)}"
    else:
        return lines
    data = config.data
    return [
        *lines,
        f"WARNING: {wrong}. Look at first_batch.png, and check config.data.ignore="
        f"{tuple(data.ignore)}, config.data.reduce_zero_label={data.reduce_zero_label} "
        f"and config.data.labels={data.labels!r}.",
    ]


def look(stage: core.Stage, batch, key, count: int):
    """The first examples after the draws of step 0, and all pixels' mean and std."""
    where = next(iter(batch.values())).sharding

    def see(batch, key):
        draws = stage.draw(jax.random.fold_in(key, 0), batch)
        seen = stage.augment(batch, draws)
        pixels = seen["image"].astype(np.float32)
        some = {name: value[:count] for name, value in seen.items()}
        return some, pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))

    everywhere = parallel.replicated(where.mesh)
    return jax.device_get(jax.jit(see, out_shardings=everywhere)(batch, key))


def in_levels(config, mean, std) -> str:
    """The pixels' statistics as `config.data.mean` counts them, 0..1."""
    scale, shift = np.array(config.data.std), np.array(config.data.mean)
    mean, std = mean * scale + shift, std * scale
    lists = (", ".join(f"{v:.3f}" for v in values) for values in (mean, std))
    return "mean ({}), std ({})".format(*lists)


def sheet(config, seen: dict, classes) -> Image.Image:
    """All pictures on one, in reading order, each with what it is called.

    With label maps each picture stands beside itself in the colours of its labels, and
    a legend below them all.
    """
    image, columns = levels(config, seen["image"]), COLUMNS
    classes = [palette.drawable(str(name), i) for i, name in enumerate(classes)]
    said = [caption(config, seen, i, classes) for i in range(len(image))]
    beside = [None] * len(image)
    if "label_map" in seen:
        beside = map(palette.tinted, image, seen["label_map"])
        columns //= 2
    tiles = [tile(*each) for each in zip(image, said, beside, strict=True)]
    columns = min(columns, len(tiles))
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for i, each in enumerate(tiles):
        whole.paste(each, (i % columns * width, i // columns * height))
    if "label_map" not in seen:
        return whole
    found = [(int(at), of_pixels(at, classes)) for at in np.unique(seen["label_map"])]
    return palette.above(whole, palette.legend(found, whole.width))


def levels(config, image):
    """[B, H, W, 3] uint8 of prepared pictures; of other channels, what can be shown."""
    scale = np.array(config.data.std, np.float32)
    shift = np.array(config.data.mean, np.float32)
    image = np.clip(np.round(255 * (image * scale + shift)), 0, 255).astype(np.uint8)
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)


def tile(image, text: str, beside=None) -> Image.Image:
    """One picture [H, W, 3], perhaps another one beside it, above its caption."""
    pictures = [Image.fromarray(each) for each in (image, beside) if each is not None]
    low, high = SIDES
    longer = max(pictures[0].size)
    scale = -(-low // longer) if longer < low else min(1.0, high / longer)
    width, height = (max(1, round(side * scale)) for side in pictures[0].size)
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    size = (len(pictures) * (width + 2) + 2, height + 2 * LINE + 4)
    whole = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture.resize((width, height), kind), (2 + i * (width + 2), 2))
    for line, words in enumerate(text.split("\n")):
        ImageDraw.Draw(whole).text((2, height + 2 + line * LINE), words, fill="black")
    return whole


def caption(config, seen: dict, i: int, classes) -> str:
    """Its label; of a mixed picture both, and how much of each; of a map the most."""
    if "label_map" in seen:
        labels, found = np.unique(seen["label_map"][i], return_counts=True)
        most = np.argsort(-found, kind="stable")[:4]
        share, named = found / found.sum(), [of_pixels(at, classes) for at in labels]
        told = [f"{named[k]} {share[k]:.0%}" for k in most]
        return "\n".join(", ".join(told[k : k + 2]) for k in range(0, len(told), 2))
    if "target" not in seen:
        return name_of(seen["label"][i], classes) if "label" in seen else ""
    smoothing, target = config.augment.smoothing, seen["target"][i]
    share = (target - smoothing / len(target)) / (1 - smoothing)
    shown = [label for label in np.argsort(-share)[:2] if share[label] > 0.005]
    if len(shown) == 1:
        return name_of(shown[0], classes)
    return "\n".join(
        f"{name_of(label, classes)}, {share[label]:.0%}" for label in shown
    )
