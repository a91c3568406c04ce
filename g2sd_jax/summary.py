# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A report on the data before step 0: counts, labels, and a sheet of the first batch.

What there is to say and to draw of labels, the stage knows (`Stage.summarise`,
`Stage.picture`).
"""

import io
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from g2sd_jax import core, palette, parallel, workdir
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data.memory import pixel_checks

PICTURE = "first_batch.png"
SIDES = (96, 256)  # Pixels that the longer side of a shown picture is brought into.
COLUMNS = 8
LINE = palette.LINE


def report(
    config: ConfigDict,
    stage: core.Stage,
    dataset: datasets.Dataset,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    path: str,
) -> None:
    """Prints counts and labels, and draws the first batch as the device sees it.

    Args:
        config: the run's.
        stage: whose draws, augmentation and pictures are shown.
        dataset: the training split.
        batch: that of step 0, placed; every process takes part.
        key: that the keys of the steps are folded from.
        path: of the workdir, which gets `first_batch.png` from the main process.
    """
    lines = [counts(config, dataset), *dataset.notes]
    lines += pixel_checks.warnings(config, dataset)
    for line in (*lines, *stage.summarise(dataset, batch)):
        parallel.print_once(line)
    if config.first_batch_images < 1:
        return
    examples, mean, std = look(stage, batch, key, config.first_batch_images)
    parallel.print_once(
        f"first batch as the device sees it: pixels {in_levels(config, mean, std)}; "
        f"config.data.mean={tuple(config.data.mean)} and std={tuple(config.data.std)}"
    )
    if jax.process_index() == 0:
        path, png = os.path.join(path, PICTURE), io.BytesIO()
        sheet(config, stage, examples, dataset.classes).save(png, format="PNG")
        workdir.write_bytes(path, png.getvalue())
        note = undrawn(dataset.classes)
        parallel.print_once(
            f"its first {len(examples['image'])} pictures: {path}{note}"
        )


def undrawn(classes: Sequence[str]) -> str:
    """A clause on the classes that a drawing has as numbers, "" where it has none."""
    lacking = [name for name in classes if palette.drawable_name(name, -1) != name]
    if not lacking:
        return ""
    return (
        f" ({len(lacking)} classes by their numbers: the font, DejaVu Sans, lacks "
        "letters of their names)"
    )


def counts(config: ConfigDict, dataset: datasets.Dataset) -> str:
    """A line about the size of the training split."""
    steps = dataset.count // config.batch
    return (
        f"data: {dataset.count} examples in split {config.data.train_split!r}, "
        f"{steps} batches of {config.batch} an epoch, {config.data.classes} classes"
    )


def name_of(label: int, classes: Sequence[str]) -> str:
    """The name of a class; its number where classes have no names."""
    return str(classes[label]) if classes else str(label)


def look(
    stage: core.Stage, batch: Mapping[str, jax.Array], key: jax.Array, count: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Augments a batch with the draws of step 0.

    Returns:
        Its first `count` examples, and the mean and standard deviation [C] of all
        its pixels.
    """
    where = next(iter(batch.values())).sharding

    def augment(batch, key):
        draws = stage.draw(jax.random.fold_in(key, 0), batch)
        augmented = stage.augment(batch, draws)
        pixels = augmented["image"].astype(np.float32)
        examples = {name: value[:count] for name, value in augmented.items()}
        return examples, pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))

    everywhere = parallel.replicated(where.mesh)
    return jax.device_get(jax.jit(augment, out_shardings=everywhere)(batch, key))


def in_levels(config: ConfigDict, mean: np.ndarray, std: np.ndarray) -> str:
    """The pixels' statistics [C] in the unit of `config.data.mean`, 0..1."""
    scale, shift = np.array(config.data.std), np.array(config.data.mean)
    mean, std = mean * scale + shift, std * scale
    lists = (", ".join(f"{v:.3f}" for v in values) for values in (mean, std))
    return "mean ({}), std ({})".format(*lists)


def sheet(
    config: ConfigDict,
    stage: core.Stage,
    examples: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> Image.Image:
    """Draws all examples in reading order, and below them what their colours mean.

    Args:
        config: the recipe, for the pixels' scale.
        stage: whose `picture` says how one example is drawn.
        examples: augmented arrays [B, ...] by name.
        classes: names in label order, () where there are none.
    """
    classes = [palette.drawable_name(str(name), i) for i, name in enumerate(classes)]
    images = levels(config, examples["image"])
    pictures = []
    for row, image in enumerate(images):
        example = {name: values[row] for name, values in examples.items()}
        pictures.append(stage.picture({**example, "image": image}, classes))
    tiles = [tile(picture) for picture in pictures]
    pairs = any(picture.beside is not None for picture in pictures)
    columns = min(COLUMNS // 2 if pairs else COLUMNS, len(tiles))
    width, height = (max(sides) for sides in zip(*(t.size for t in tiles), strict=True))
    rows = -(-len(tiles) // columns)
    drawn = Image.new("RGB", (columns * width, rows * height), "white")
    for i, each in enumerate(tiles):
        drawn.paste(each, (i % columns * width, i // columns * height))
    legend = sorted({row for picture in pictures for row in picture.legend})
    if not legend:
        return drawn
    return palette.stack_vertically(drawn, palette.legend(legend, drawn.width))


def levels(config: ConfigDict, image: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] uint8 RGB of normalised pictures [B, H, W, C] of any channels."""
    scale = np.array(config.data.std, np.float32)
    shift = np.array(config.data.mean, np.float32)
    image = np.clip(np.round(255 * (image * scale + shift)), 0, 255).astype(np.uint8)
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)


def tile(picture: core.Picture) -> Image.Image:
    """Draws one example: its image, the one beside it if any, its caption below."""
    images = [Image.fromarray(picture.image)]
    if picture.beside is not None:
        images.append(Image.fromarray(picture.beside))
    low, high = SIDES
    longer = max(images[0].size)
    scale = -(-low // longer) if longer < low else min(1.0, high / longer)
    width, height = (max(1, round(side * scale)) for side in images[0].size)
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    size = (len(images) * (width + 2) + 2, height + 2 * LINE + 4)
    drawn = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        drawn.paste(image.resize((width, height), kind), (2 + i * (width + 2), 2))
    for line, words in enumerate(picture.caption.split("\n")):
        place = (2, height + 2 + line * LINE)
        canvas = ImageDraw.Draw(drawn)
        canvas.text(place, words, fill="black", font=palette.font())
    return drawn
