# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From the bytes of one picture file to upright pixels, whole or a part at a scale.

libjpeg-turbo decodes grey and colour JPEGs, at any eighth of their size; Pillow decodes
everything else (CMYK, PNG, WebP, BMP) and whatever the former refuses, so a picture is
bad only if Pillow says so. The file's first bytes decide, never its name. Both give the
same pixels at full size.

    grey, palette, 1 bit    the grey level in every channel, the palette's colours
    transparency            dropped: the colours as they are stored
    CMYK                    RGB as Pillow converts it
    16-bit grey             the upper eight bits
    EXIF orientation        turned upright
    several frames          the first
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

MODES = {1: "L", 3: "RGB"}  # Channels -> Pillow's name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Others run interpreters, or are no pictures.
ORIENTATION = 0x0112  # The EXIF tag.
# Its values: exchange the axes, then reverse the rows, reverse the columns.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
UPRIGHT = (False, False, False)
WHOLE = 8  # Eighths of the full size.


class Unreadable(ValueError):
    """The bytes are no picture, or not a whole one; the message is the reason."""


class Picture(NamedTuple):
    """An opened picture; nothing but its header was read."""

    size: tuple[int, int]  # (height, width), upright.
    scales: bool  # Whether it can be decoded at less than its full size.
    cut: Callable  # (box, eighths) -> (pixels [h, w, C] uint8, the box inside them)


def check_channels(channels) -> None:
    if channels not in MODES:
        raise ValueError(
            f"config.model.channels={channels}: picture files are read with 1 (grey) "
            "or 3 (RGB) channels; store others as an .npz."
        )


def opened(data: bytes, channels: int) -> Picture:
    """The picture in `data`, to be read with 1 or 3 channels; raises `Unreadable`."""
    if not data:
        raise Unreadable("the file is empty")
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return by_pillow(data, channels)
        if colours in ("YCbCr", "Gray", "RGB"):
            return by_turbo(data, channels, (height, width), colours)
    if data[:2] in (b"P5", b"P6"):
        return by_view(data, channels)
    return by_pillow(data, channels)


def by_turbo(data, channels, stored, colours):
    turn = UPRIGHT
    if has_exif(data):  # Only those that carry it pay for having it parsed.
        turn = TURNS.get(guarded(lambda: orientation(data)), UPRIGHT)
    direct = "GRAY" if channels == 1 and colours == "Gray" else "RGB"

    def cut(box, eighths=WHOLE):
        scale, least = eighths / WHOLE, {}
        if eighths != WHOLE:  # The library takes the smallest that is no smaller.
            rows, columns = (-(-side * eighths // WHOLE) for side in stored)
            least = dict(min_height=rows, min_width=columns)
        try:
            pixels = simplejpeg.decode_jpeg(data, direct, **least)
        except ValueError:  # It stops at what others only warn of, so Pillow decides.
            guarded(lambda: Image.open(io.BytesIO(data), formats=FORMATS).load())
            decode = simplejpeg.decode_jpeg
            pixels = guarded(lambda: decode(data, direct, strict=False, **least))
        box = [side * scale for side in unturned(box, stored, turn)]
        pixels, box = slice_out(pixels, box)
        if channels == 1 and direct == "RGB":
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        return turned(pixels, box, turn)

    size = stored[::-1] if turn[0] else stored
    return Picture(size, True, cut)


def by_view(data, channels):
    """The pixels of a prepared copy: PGM or PPM, of which only the box is touched."""
    _, size, _ = bytes(data[:32]).split(b"\n", 3)[:3]
    width, height = map(int, size.split())
    depth = 1 if data[:2] == b"P5" else 3
    pixels = np.frombuffer(data, np.uint8)[-height * width * depth :]
    pixels = pixels.reshape(height, width, depth)

    def cut(box, eighths=WHOLE):
        assert eighths == WHOLE, eighths
        part, box = slice_out(pixels, box)
        if depth > channels:
            part = np.asarray(Image.fromarray(part).convert("L"))[..., None]
        return np.broadcast_to(part, (*part.shape[:2], channels)), box

    return Picture((height, width), False, cut)


def by_pillow(data, channels):
    def load():
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(to_mode(upright, MODES[channels]))

    def size():
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            exchanged = TURNS.get(image.getexif().get(ORIENTATION), UPRIGHT)[0]
            return image.size if exchanged else image.size[::-1]

    def cut(box, eighths=WHOLE):
        assert eighths == WHOLE, eighths
        pixels = guarded(load)
        return slice_out(pixels.reshape(*pixels.shape[:2], channels), box)

    return Picture(guarded(size), False, cut)


def guarded(use):
    """`use()`, whose failure is the picture's."""
    try:
        return use()
    except UnidentifiedImageError as error:  # Its message names an object in memory.
        names = ", ".join(FORMATS)
        raise Unreadable(f"the file is no picture that is read ({names})") from error
    except Exception as error:  # Pillow raises some ten types for broken files.
        raise Unreadable(f"{error}") from error


def has_exif(data):
    """Whether a segment before the pixels of a JPEG is EXIF."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def orientation(data):
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return image.getexif().get(ORIENTATION)


def to_mode(image, mode):
    if image.mode.startswith("I"):  # 16-bit grey; Pillow itself would clip it at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # A palette may hold it; Pillow warns otherwise.
    return image.convert(mode)


def slice_out(pixels, box):
    """The pixels that a box touches, and the box inside them."""
    y, x, height, width = box
    top, left = math.floor(y), math.floor(x)
    # A box that ends on a pixel's edge must not take the next one for a rounding error.
    bottom, right = (math.ceil(end - 1e-6) for end in (y + height, x + width))
    part = pixels[top:bottom, left:right]
    return part, (y - top, x - left, height, width)


def unturned(box, stored, turn):
    """An upright box in the coordinates of the picture as it is stored."""
    exchanged, rows, columns = turn
    size = stored[::-1] if exchanged else stored
    y, x, height, width = box
    y = size[0] - y - height if rows else y
    x = size[1] - x - width if columns else x
    return (x, y, width, height) if exchanged else (y, x, height, width)


def turned(pixels, box, turn):
    """Stored pixels and a box inside them, upright."""
    exchanged, rows, columns = turn
    if exchanged:
        pixels = pixels.swapaxes(0, 1)
        box = (box[1], box[0], box[3], box[2])
    y, x, height, width = box
    if rows:
        pixels, y = pixels[::-1], len(pixels) - y - height
    if columns:
        pixels, x = pixels[:, ::-1], pixels.shape[1] - x - width
    return pixels, (y, x, height, width)
