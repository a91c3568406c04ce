# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Makes one record of a prepared copy: a picture upright, shrunk and encoded again.

84 flower photographs as JPEGs of 500x375 and 58 kB, shrunk to a shorter side of 256;
error in grey levels against the shrunk pixels; images/s of `pipeline.Training` at 224,
in CPU time, beside a Pillow loop that decodes the original, crops, resizes and flips
(2026-11-20, two shared cores, median of 7 turns):

    --format=jpeg              20 kB   mean 1.9, 2.8 % beyond 8   5.3 to 5.6 times
    --quality=95 --chroma=444  38 kB   mean 1.0, 0.1 % beyond 8   3.3 to 3.4 times
    --format=raw              262 kB   exact                      25 times
    the folder itself          58 kB                              1.9 to 2.1 times

So the default is what reaches five times Pillow within 2 grey levels; whoever has the
room takes raw.
"""

import collections
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import TypeVar

from PIL import Image, ImageOps

from g2sd_jax.data import decoder, encoded

Item, Result = TypeVar("Item"), TypeVar("Result")

CHROMA = {"444": 0, "422": 1, "420": 2}  # Pillow's numbers of the subsamplings.


def map_ahead(
    pool: futures.Executor,
    make: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
) -> Iterator[Result]:
    """`map` by the pool's threads, in order, never more than `depth` results early."""
    waiting = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def try_to_encode(
    examples: encoded.Encoded, job: Mapping, index: int
) -> tuple[str, int | None, bytes | Exception]:
    """Makes `(name, label, record)` of one picture.

    That of an unreadable picture is the exception that says why.

    Args:
        examples: the source.
        job: with `size`, `format`, `quality` and `chroma`, as for `shrink`.
        index: of the picture.
    """
    label = None if examples.labels is None else int(examples.labels[index])
    try:
        record = shrink(
            examples.read(index),
            job["size"],
            job["format"],
            quality=job["quality"],
            chroma=job["chroma"],
        )
    except (OSError, decoder.Unreadable) as error:
        record = error
    return examples.name(index), label, record


def shrink(
    data: bytes, size: int, form: str, quality: int = 90, chroma: str = "420"
) -> bytes:
    """Turns a picture file upright, shrinks it, and encodes it again.

    A JPEG that is upright and small enough stays as it is.

    Args:
        data: the file.
        size: pixels of the shorter side; the longer one is rounded down, as in the
            published evaluation.
        form: jpeg, or raw for a binary PPM or PGM.
        quality: of JPEG, 1 to 100.
        chroma: subsampling of JPEG, a key of `CHROMA`.

    Raises:
        Unreadable: the file cannot be decoded.
    """
    return decoder.translate_errors(lambda: _shrink(data, size, form, quality, chroma))


def _shrink(data, size, form, quality, chroma):
    with decoder.open_image(data) as image:
        image.load()  # Raises for a truncated file.
        upright = image.getexif().get(decoder.ORIENTATION, 1) == 1
        small = min(image.size) <= size and image.mode in ("L", "RGB")
        if form == "jpeg" and image.format == "JPEG" and small and upright:
            return data
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        image = ImageOps.exif_transpose(image)
        image = decoder.to_mode(image, "L" if grey else "RGB")
    if min(image.size) > size:
        width, height = (size * side // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if form == "raw":
        image.save(file, "PPM")  # PGM where it is grey.
    else:
        image.save(file, "JPEG", quality=quality, subsampling=CHROMA[chroma])
    return file.getvalue()
